"""What travels between rooms: measurements, calibrations, timings, intervals; their files."""
