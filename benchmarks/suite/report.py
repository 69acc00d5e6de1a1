"""Numbers in documents: each stands between two marks and is written from a result, so that none is typed by hand.

```
<!-- bench:NAME -->          NAME: table    every figure, with its interval, target and verdict
...                                missed   what missed its target, by how much, and what bounds it
<!-- /bench -->                    short    the figures that a reader looks for first
                                   source   where and when it was measured
<!-- bench:NAME:asked -->    the same of a run of what is in no whole run
```
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.suite.words import format_figure, format_interval, format_target, format_value, format_verdict
from vmfork.errors import ConfigError
from vmfork.host.folders import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.suite.result import RowResult, RunResult

DOCUMENTS = ("README.md", "docs/performance.md")
_PLACE = re.compile(r"(<!-- bench:(\w+)(?::(\w+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)
_ASKED = "asked"

# What a reader looks for first; its measurements come first in a run.
SHORT = (
    "fork.first-exec-time", "fork.first-exec", "fork.ready", "peer-boot.time", "peer-boot.speedup",
    "peer-loadvm.speedup", "peer-libvirt.speedup", "peer-quicksand.speedup", "concurrency.16", "rate.concurrency-4",
    "ram.8g", "memory.raw", "memory.pss", "pool.take", "pool.time", "cli.overhead", "import.vmfork",
)  # fmt: skip


def fill_documents(result: RunResult, folder: Path) -> Sequence[Path]:
    """Every place for such runs in the documents below `folder` says what `result` says; gives those documents."""
    filled = []
    for name in DOCUMENTS:
        path = folder / name
        if path.is_file() and _PLACE.search(text := path.read_text()):
            write_whole(path, fill(text, result).encode(), mode=0o644)
            filled.append(path)
    return filled


def fill(text: str, result: RunResult) -> str:
    """`text` with every place in it filled that is for such a run. Raises `ConfigError` for one of an unknown name."""

    def write(match: re.Match[str]) -> str:
        begin, name, of, end = match.groups()
        if name not in _PARTS or of not in (None, _ASKED):
            wrong = name if name not in _PARTS else of
            raise ConfigError(
                "report", wrong, f"no part of a report is called {wrong!r}", hint=f"use {', '.join(_PARTS)}"
            )
        if (of == _ASKED) != result.is_asked_for:
            return match.group()
        return f"{begin}{_PARTS[name](result)}\n{end}"

    return _PLACE.sub(write, text)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _full_table(result: RunResult) -> str:
    return _table(
        ("figure", "value", "95 % interval", "target", "verdict"),
        [
            (row.text, format_value(row), format_interval(row), format_target(row), format_verdict(row))
            for row in result.rows
        ],
    )


def _short_table(result: RunResult) -> str:
    found = [row for key in SHORT if (row := result.row(key)) is not None]
    return _table(
        ("measured", "median", "target"), [(row.text, format_value(row), format_target(row)) for row in found]
    )


def _missed(result: RunResult) -> str:
    lines = [_describe_missed(row) for row in result.rows if row.verdict in ("missed", "not run")]
    return "\n".join(lines) or "All of them are reached."


def _describe_missed(row: RowResult) -> str:
    if row.value is None:
        return f"- {row.text}: not run, {row.reason}"
    return f"- {row.text}: {format_value(row)}, {format_verdict(row)} (target: {format_target(row)}). {row.bounds}"


def _source(result: RunResult) -> str:
    machine, versions = result.machine, result.versions
    minutes = format_figure(result.duration_s / 60, "minutes")
    return (
        f"Measured {result.started_at[:10]} in one {result.mode} run of {minutes}: {machine['cores']} cores "
        f"({machine['cpu']}), {machine['memory_mib']} MiB, Linux {machine['kernel']}; "
        f"QEMU {versions['qemu'].partition(' ')[0]} with {result.accel.upper()}, guest Linux "
        f"{versions['guest_kernel']}; load at the end {machine['load']}."
    )


_PARTS: dict[str, Callable[[RunResult], str]] = {
    "table": _full_table,
    "short": _short_table,
    "missed": _missed,
    "source": _source,
}
