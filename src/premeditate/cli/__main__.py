"""`python -m premeditate.cli` is the `premeditate` command."""

from premeditate.cli import main

main()
