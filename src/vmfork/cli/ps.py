"""`vmfork ps`: the machines that run, and those that ended not long ago."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.found import describe, list_machines
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json, show_table
from vmfork.cli.tree import Tree
from vmfork.machine.naming import has_label
from vmfork.machine.use import MEMORY, read_use, tell_memory
from vmfork.units import format_bytes, format_mib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.machine.ended import End
    from vmfork.machine.folder import VMRecord


_COLUMNS = ("id", "name", "template", "state", "cpus", "memory", "own", "base", "siblings", "created", "labels")
_OF_MEMORY = ("own", "base", "siblings")
_BOOTED = "(booted)"


@click.command("ps")
@click.option("-a", "--all", "with_ended", is_flag=True, help="Those that ended not long ago as well.")
@click.option("--filter", "labels", multiple=True, metavar="K[=V]", help="Those with this label alone. Repeatable.")
@click.option(
    "--tree", is_flag=True, help="Below the template that each comes from, and forks of a running machine below that."
)
@click.option("-m", "--memory", is_flag=True, help="What each has of the host's memory for itself, and shares.")
@json_option
def command(with_ended: bool, labels: Sequence[str], tree: bool, memory: bool, as_json: bool) -> None:
    """List the machines that run, whoever owns them.

    Of machines that `start` made and that have ended, -a lists the last 64, for a day. With -m, OWN comes back when the
    machine ends alone; BASE is read from its template, and SIBLINGS from what the machine had that it is a fork of.
    """
    found = list_machines(with_ended=with_ended)
    told = [
        describe(record, end) | dict(_measure(record, end) if memory else {})
        for record, end in found
        if all(has_label(record.labels, each) for each in labels)
    ]
    columns = _COLUMNS if memory else tuple(each for each in _COLUMNS if each not in _OF_MEMORY)
    if as_json:
        show_json(_by_template(told) if tree else told)
    elif tree:
        _show_tree(_by_template(told), columns[1:])
    else:
        show_table([column.upper() for column in columns], [_row(each, columns) for each in told])


def _measure(record: VMRecord, end: End | None) -> Mapping[str, int | None]:
    """Bytes of memory; `None` for a machine that has ended."""
    if end is None:
        with suppress(OSError):  # just now
            return tell_memory(record.facts, read_use(record).memory)
    return dict.fromkeys(MEMORY)


def _by_template(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each template with its machines; an empty name is that of those that were booted."""
    names = sorted({each["template"] for each in told})
    return [{"template": name, "machines": [each for each in told if each["template"] == name]} for name in names]


def _show_tree(groups: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """One template a line, and below it one machine a line, in columns; forks of a running one below that."""
    columns = [column for column in columns if column != "template"]
    lines: list[Sequence[object]] = []
    for group in groups:
        lines.append((group["template"] or _BOOTED, *("" for _ in columns)))
        tree = Tree(group["machines"], name=lambda each: each["id"], line=lambda each: each["ancestors"])
        lines += [(branch + each["id"], *_row(each, columns)) for branch, each in tree.draw()]
    show_table(["TEMPLATE", *(column.upper() for column in columns)], lines)


def _row(told: dict[str, Any], columns: Sequence[str]) -> Sequence[object]:
    state = f"ended: {told['reason']}" if told["state"] == "ended" else told["state"]
    shown = told | {
        "state": state + (", paused" if told["paused"] else ""),
        "memory": format_mib(told["memory_mib"]),
        "created": told["created_at"][:19],
        "labels": ",".join(f"{key}={value}" for key, value in told["labels"].items()),
    }
    if told.get("own_bytes") is not None:
        own, siblings, base = told["own_bytes"], told["siblings_bytes"], told["shared_bytes"] - told["siblings_bytes"]
        shown |= {"own": format_bytes(own), "base": format_bytes(base), "siblings": format_bytes(siblings)}
    return [shown.get(column, "") for column in columns]
