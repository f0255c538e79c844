"""`python -m clipedit`."""

from .cli import main

main()
