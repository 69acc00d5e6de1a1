"""`python -m vmfork` is `vmfork`."""

import sys

from vmfork.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
