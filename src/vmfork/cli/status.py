"""The exit statuses of commands that end as a program in a guest does."""

from __future__ import annotations

from typing import Any

import click

from vmfork.border import translated
from vmfork.cli.loop import Interrupted
from vmfork.cli.show import show_error

TIME_LIMIT, OWN_FAILURE, PIPE_CLOSED = 124, 125, 141


class _WrongUsage(click.UsageError):
    exit_code = OWN_FAILURE


class ProgramCommand(click.Command):
    """Every failure that is not the program's own has exit status 125, wrong usage too."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _WrongUsage(error.format_message(), error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Interrupted, click.exceptions.Exit):
            raise
        except click.UsageError as error:
            raise _WrongUsage(error.format_message(), error.ctx) from error
        except BrokenPipeError:
            return PIPE_CLOSED
        except Exception as error:  # noqa: BLE001 - a bug must not look like the program's own status either
            show_error(translated(error))
        return OWN_FAILURE
