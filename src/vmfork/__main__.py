"""`python -m vmfork` is the command line."""

from vmfork.cli.main import main

main()
