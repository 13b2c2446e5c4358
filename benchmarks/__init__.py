"""Benchmarks: each prints a number beside its limit or its rival of the same run."""
