"""The entry point: finds the command, runs it, and turns what it raised into lines and an exit status.

```
0    done                                   1    failed: host, image, guest, template
2    wrong input or usage                   3    factory status: off      4    template audit: not safe
130  Ctrl-C      143  SIGTERM      129  SIGHUP
run, shell: the program's own status; 124 time limit, 125 vmfork failed (wrong usage too), 126, 127, 128+n as a
shell, 141  nobody reads its output any more
```
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

import click

import vmfork
from vmfork.border import translated
from vmfork.cli.loop import Interrupted
from vmfork.cli.options import config_option
from vmfork.cli.show import (
    describe_failure,
    json_document,
    print_failure,
    show_error,
    show_failure,
    show_json,
)
from vmfork.errors import ConfigError, VMForkError
from vmfork.late import import_late

if TYPE_CHECKING:
    from collections.abc import Sequence

# The summaries are here too, so that `vmfork --help` loads no command: all of them take three times as long to load.
_COMMANDS = {
    "doctor": "Tell whether VMs can run here, how, and what to do if not.",
    "config": "Show the configuration in force and where each value came from.",
    "image": "Build, import, list and remove images.",
    "template": "Build, list, show, verify, audit, save, load, push, pull, persist and remove templates.",
    "run": "Run CMD in a fresh fork, pass its input and output through, leave nothing.",
    "shell": "Open a login shell in a fresh fork, or in machine ID.",
    "start": "Start a machine that outlives this command, and print its id.",
    "exec": "Run CMD in machine ID, pass its input and output through.",
    "cp": "Copy a file or a folder into a machine that `start` made, or out of it.",
    "watch": "Print what happens to the file or folder PATH of machine ID, as it happens, until it is gone.",
    "ps": "List the machines that run, whoever owns them.",
    "show": "Show what is known of machine ID, which runs or ended not long ago.",
    "stats": "Show what machine ID takes of the host now: CPU, memory of its own, memory that it shares.",
    "top": "Show what each machine takes of the host, as it changes, and what they share.",
    "logs": "Print what machine ID wrote: the command that it was started with, else its console.",
    "forward": "Forward ports of the host to ports of machine ID, until this command is ended.",
    "reverse": "Let programs of machine ID reach one service of the host, until this command is ended.",
    "network": "Show what programs of machine ID reach, or let them reach more until this command is ended.",
    "guest-fork": "Let programs of machine ID fork it, until this command is ended.",
    "port": "List the ports of machine ID that are forwarded now, and where on the host they are.",
    "pause": "Let each machine ID stand still.",
    "resume": "Let each machine ID run on, with the host's clock.",
    "stop": "End each machine ID that `start` made, or that waits for an owner.",
    "wait": "Wait until machine ID has ended, and print why.",
    "diff": "Show what differs between A and B: files, processes, memory.",
    "fork": "Fork machine ID, which runs on, and print the ids of the forks.",
    "freeze": "Make the template NAME of machine ID, which runs on, as it is now.",
    "checkpoint": "Keep machine ID, which runs on, as it is now, and print the name: NAME, or the next number.",
    "rollback": "Bring machine ID back to CHECKPOINT, or its last one, under the same id, and print that.",
    "resize": "Give machine ID, which waits for an owner, another number of CPUs or size of memory, while it runs.",
    "cluster": "Show nodes, templates and machines of a cluster.",
    "factory": "Set up, inspect and remove the factory's template; serve its cache.",
    "gc": "Remove what killed processes left, and show it.",
    "debug-bundle": "Collect what a bug report about machine ID needs in one tar.gz, without guest memory or secrets.",
    "bench": "Show what a fork costs here, beside the same fork made by hand.",
}
# What commands show with is called `show`, and what they log with `logs`.
_MODULES = {"show": "details", "logs": "console"}
_FAILED, _WRONG_INPUT, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 130, 141

_EPILOG = """\b
Start with:      vmfork run -- uname -a
Completion:      eval "$(_VMFORK_COMPLETE=bash_source vmfork)"    (or zsh_source, fish_source)
Configuration:   vmfork.toml, VMFORK_<SECTION>_<FIELD>, options; see `vmfork config`
"""


def module_of(name: str) -> str:
    """Where the command lives."""
    return f"vmfork.cli.{_MODULES.get(name, name).replace('-', '_')}"


class _Commands(click.Group):
    """Each command lives in the module of its name, or the one in `_MODULES`, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, RUF100
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, RUF100
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_late(module_of(cmd_name), "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, RUF100
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items()])


@click.group(cls=_Commands, name="vmfork", epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vmfork.__version__, prog_name="vmfork")
@config_option
def cli(**_options: Any) -> None:
    """Boot a virtual machine once, then fork ready machines from it in about a tenth of a second."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command line `argv` (by default the process's own). Raises nothing."""
    return exit_status_of(cli, argv, name="vmfork")


def exit_status_of(command: click.Command, argv: Sequence[str] | None = None, *, name: str) -> int:
    """The exit status of `command`, called `name`, with `argv` (by default the process's own). Raises nothing."""
    was_closed = _open_closed_streams()
    json_document.is_owed = False
    try:
        status = _run(command, argv, name)
        lost = status == _PIPE_CLOSED
    except SystemExit as error:  # click's, for completion, and when it met a broken pipe itself
        status = int(error.code or 0)
        lost = status == _FAILED
    except BrokenPipeError:
        # Nobody reads our output any more; without this, Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status, lost = _FAILED, True
    if lost and was_closed:
        print_failure("standard output is closed, and there was something to print")
    return status


def _open_closed_streams() -> bool:
    """Descriptors 0 to 2 are open: a socket that got the number of a closed one would be taken for it.

    Tells whether standard output was closed. It is a pipe without a reader then, so that printing fails as it should.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if number == 1:
            reading, writing = os.pipe()
            os.dup2(writing, 1)
            os.close(reading)
            os.close(writing)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    return 1 in closed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError as error:
        return error.errno != errno.EBADF
    return True


def _run(command: click.Command, argv: Sequence[str] | None, name: str) -> int:  # noqa: PLR0911 - one for each end
    try:
        status = command.main(args=None if argv is None else [*argv], prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        hint = f"see {error.ctx.command_path} --help" if error.ctx else ""
        # An unknown option is found before `--json` is looked at.
        json_document.is_owed |= "--json" in itertools.takewhile("--".__ne__, sys.argv[1:] if argv is None else argv)
        show_failure(error.format_message(), hint, code="usage")
        return error.exit_code
    except click.ClickException as error:
        show_failure(error.format_message(), code="usage")
        return error.exit_code
    except Interrupted as error:
        click.echo(str(error), err=True)
        if json_document.is_owed:
            show_json({"error": describe_failure("interrupted", str(error), "")})
        return error.exit_status
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except VMForkError as error:
        show_error(translated(error))
        return _WRONG_INPUT if isinstance(error, ConfigError) else _FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defence: a line, not a traceback
        show_error(translated(error))
        return _FAILED
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
