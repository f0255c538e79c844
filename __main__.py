"""`python -m clipedit`."""

from .cli import run

run()
