"""`python -m polytone` is the `polytone` command."""

from polytone.cli import main

main()
