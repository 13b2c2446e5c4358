"""Data types shared by all sub-packages (measurements, calibrations, timings) and their files."""
