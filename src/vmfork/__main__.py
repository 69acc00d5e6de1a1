"""`python -m vmfork` is `vmfork`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """The exit status of this process's command line.

    Until a command owns something, Ctrl-C just ends the process: Python's own handler would raise in the middle of an
    import, and imports are a third of a `run`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vmfork.cli.main import main as run_command_line  # noqa: PLC0415 - see above

    return run_command_line()


if __name__ == "__main__":
    sys.exit(main())
