"""From a calibration to a decision: estimates, the best setting, other methods beside it."""
