"""Real predictive pipelined decoding: processes on units of their own, timed layer by layer."""
