"""The command line: verbs, prints and exit codes; what they do is done below."""

from __future__ import annotations

import sys

import click

from vmfork import __version__
from vmfork.cli.report import Reporter


class _Lazy(click.Group):
    """Finds a command's module when it is called for: start-up time is a feature."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    _WHERE = {  # noqa: RUF012 - a constant table
        "run": "run",
        "template": "template",
        "image": "image",
        "factory": "factory",
        "doctor": "doctor",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._WHERE:
            return None
        import importlib  # noqa: PLC0415

        module = importlib.import_module(f"vmfork.cli.{self._WHERE[cmd_name]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmfork")
def cli() -> None:
    """Boot a virtual machine once, then fork ready machines from it in tens of milliseconds.

    Completion: eval "$(_VMFORK_COMPLETE=bash_source vmfork)" (or zsh_source, fish_source).
    """


def main() -> None:
    """The command's exit status: 0, 1 for a failure, 2 for wrong input; `run` has its own (see its help)."""
    reporter = Reporter()
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(125 if sys.argv[1:2] == ["run"] else 2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - whatever it is, a user gets no traceback from a known error
        sys.exit(reporter.tell_error(error, failure=125 if sys.argv[1:2] == ["run"] else 1))
    sys.exit(code if isinstance(code, int) else 0)
