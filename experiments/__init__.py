"""Scripts that make what `data/` holds; `make data` runs them."""
