"""Discrete-event simulation of PPD on random or recorded matches, without the formulas."""
