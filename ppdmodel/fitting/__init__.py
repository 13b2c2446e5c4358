"""From counts of hits to a calibration: match rates with intervals, curves, reliability."""
