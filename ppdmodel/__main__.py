"""`python -m ppdmodel`."""

from .cli import main

main()
