"""What people and programs read: errors, tables, JSON, progress."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vmfork.progress import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfork.cli.bar import Bar
    from vmfork.errors import VMForkError
    from vmfork.progress import Progress, ProgressListener


# A terminal would obey them: ECMA-48 control sequences, and ESC with one character.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|.)")


def show_error(error: VMForkError) -> None:
    """What happened, the details, what to do."""
    show_failure(str(error), command_hint(error), error.details(), code=error.code)


def command_hint(error: VMForkError) -> str:
    """What to do, in the words of the command line."""
    return str(getattr(error.hint, "command", error.hint))


def show_failure(message: str, hint: str = "", details: str = "", *, code: str) -> None:
    """What happened, the details, what to do: on standard error, and as the JSON document when that was asked for.

    `code` names the kind of failure to programs.
    """
    print_failure(message, hint, details)
    if json_document.is_owed:
        show_json({"error": describe_failure(code, message, hint)})


def print_failure(message: str, hint: str = "", details: str = "") -> None:
    """The same on standard error alone. A guest has its words in it, and says nothing to the terminal."""
    click.echo(f"error: {printable(message)}", err=True)
    if details:
        click.echo(printable(details), err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


def describe_failure(code: str, message: str, hint: str) -> dict[str, str]:
    return {"code": code, "message": message, "hint": hint}


def printable(text: str) -> str:
    """The guest's text with its lines, and without escape sequences and other control characters."""
    plain = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return "".join(char for char in plain if char.isprintable() or char in "\n\t").strip()


class _JSONDocument:
    """A command that was given `--json` prints one document in every outcome."""

    def __init__(self) -> None:
        self.is_owed = False


json_document = _JSONDocument()


def show_json(value: object) -> None:
    json_document.is_owed = False
    click.echo(json.dumps(value, indent=2, default=str))


def show_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be."""
    lines = [[*head], *([_cell(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(text: str) -> str:
    """As it may be shown; what a tree is drawn with may begin with spaces."""
    return " " * (len(text) - len(text.lstrip(" "))) + printable(text)


@contextmanager
def shown_progress() -> Iterator[ProgressListener]:
    """A listener that draws a bar where standard error is a terminal, and writes one line per step elsewhere."""
    shown = _Bar() if sys.stderr.isatty() else _Lines()
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def shown_later(*, quiet: bool) -> Iterator[ProgressListener]:
    """The same for work that mostly is short: a bar once it has lasted a second, and nothing but on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield ignore_progress
        return
    shown = _Bar(delay_s=1.0)
    try:
        yield shown
    finally:
        shown.close()


class _Lines:
    def __init__(self) -> None:
        self._last = ""

    def __call__(self, event: Progress, /) -> None:
        line = f"{event.task}: {event.step}"
        if line != self._last:
            self._last = line
            click.echo(printable(line), err=True)

    def close(self) -> None:
        pass


class _Bar:
    """A bar from the first event on: a command that waits for nothing does not load what draws it."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self._bar: Bar | None = None
        self._begin = time.monotonic() + delay_s

    def __call__(self, event: Progress, /) -> None:
        if time.monotonic() < self._begin:
            return
        if self._bar is None:
            from vmfork.cli.bar import Bar  # noqa: PLC0415 - rich takes 60 ms to import

            self._bar = Bar()
        self._bar.show(event)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
