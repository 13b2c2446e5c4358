"""Decisions from a calibration: estimates, the best setting, comparison with other methods."""
