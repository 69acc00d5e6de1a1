"""`python -m vmfork` is `vmfork`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> int:
    """The exit status of this process's command line.

    Until a command owns something, Ctrl-C just ends the process: Python's own handler would raise in the middle of an
    import, and imports are a third of a `run`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Imports leave nothing to collect, and looking for it among them costs 5 ms of a start (docs/decisions/0008).
    gc.set_threshold(50_000)
    from vmfork.cli.main import main as run_command_line  # noqa: PLC0415 - see above

    return run_command_line()


def run() -> None:
    """The process ends with the status of its command line.

    It ends at once: taking apart what was imported would cost 15 ms of every command, and a command has closed what it
    owns.
    """
    status = main()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        status = status or 1
    os._exit(status)


if __name__ == "__main__":
    run()
