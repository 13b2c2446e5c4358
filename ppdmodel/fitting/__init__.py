"""Fitting of hit counts: match rates with intervals, match-rate curves, reliability."""
