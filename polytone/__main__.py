"""`python -m polytone` is the `polytone` command."""

from .cli.main import main

main()
