"""How the command line speaks: errors with hints, progress on standard error, tables and JSON on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from vmfork.errors import ConfigError, VMForkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.progress import Progress


class Reporter:
    """Tells errors and progress on standard error."""

    def tell_error(self, error: Exception, *, failure: int = 1) -> int:
        """The error was told; gives the exit status: 2 for wrong input, else `failure`. A bug is raised as it is."""
        if not isinstance(error, VMForkError):
            raise error
        lines = [f"error: {error}"]
        if error.details():
            lines.append(error.details())
        if error.hint:
            lines.append(f"hint: {error.hint}")
        print("\n".join(lines), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) and failure == 1 else failure


def show_progress(event: Progress) -> None:
    percent = "" if event.fraction is None else f" {event.fraction * 100:3.0f}%"
    print(f"{event.task}:{percent} {event.step}", file=sys.stderr)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell."""
    table = [tuple(headings), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
