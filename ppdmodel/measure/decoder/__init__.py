"""Batched decoding with a KV cache, early exits, and the check of both."""
