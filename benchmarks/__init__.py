"""Benchmarks: each prints a number and its limit, or a baseline's in the same run."""
