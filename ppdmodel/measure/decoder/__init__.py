"""Batched decoding with a cache, reading exits, and the check that both are right."""
