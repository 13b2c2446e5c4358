"""Scripts that make the files of `data/`; `make data` runs them."""
