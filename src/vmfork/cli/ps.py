"""`vmfork ps`: the machines that run, and those that ended not long ago."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.found import describe, list_machines
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json, show_table
from vmfork.machine.naming import has_label
from vmfork.units import format_mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_COLUMNS = ("id", "name", "template", "state", "cpus", "memory", "created", "labels")
_BOOTED = "(booted)"


@click.command("ps")
@click.option("-a", "--all", "with_ended", is_flag=True, help="Those that ended not long ago as well.")
@click.option("--filter", "labels", multiple=True, metavar="K[=V]", help="Those with this label alone. Repeatable.")
@click.option(
    "--tree", is_flag=True, help="Below the template that each comes from, and forks of a running machine below that."
)
@json_option
def command(with_ended: bool, labels: Sequence[str], tree: bool, as_json: bool) -> None:
    """List the machines that run, whoever owns them.

    Of machines that `start` made and that have ended, -a lists the last 64, for a day.
    """
    found = list_machines(with_ended=with_ended)
    told = [describe(record, end) for record, end in found if all(has_label(record.labels, each) for each in labels)]
    if as_json:
        show_json(_by_template(told) if tree else told)
    elif tree:
        _show_tree(_by_template(told))
    else:
        show_table([column.upper() for column in _COLUMNS], [_row(each) for each in told])


def _by_template(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each template with its machines; an empty name is that of those that were booted."""
    names = sorted({each["template"] for each in told})
    return [{"template": name, "machines": [each for each in told if each["template"] == name]} for name in names]


def _show_tree(groups: Sequence[dict[str, Any]]) -> None:
    """One template a line, and below it one machine a line, in columns; forks of a running one below that."""
    lines: list[Sequence[object]] = []
    for group in groups:
        machines = group["machines"]
        lines.append((group["template"] or _BOOTED, "", "", "", "", "", ""))
        for branch, each in _nest(machines, parent=None):
            machine_id, name, _, *others = _row(each)
            lines.append((f"{branch} {machine_id}", name, *others))
    show_table(["TEMPLATE", *(column.upper() for column in _COLUMNS if column not in ("id", "template"))], lines)


def _nest(machines: Sequence[dict[str, Any]], *, parent: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each machine behind the lines that lead to it. One whose parent is not among them stands at the top."""
    ids = {each["id"] for each in machines}
    here = [each for each in machines if (each["parent"] if each["parent"] in ids else None) == parent]
    for each in here:
        is_last = each is here[-1]
        yield ("└─" if is_last else "├─"), each
        for branch, below in _nest(machines, parent=each["id"]):
            yield ("   " if is_last else "│  ") + branch, below


def _row(told: dict[str, Any]) -> Sequence[object]:
    labels = ",".join(f"{key}={value}" for key, value in told["labels"].items())
    state = f"ended: {told['reason']}" if told["state"] == "ended" else told["state"]
    state += ", paused" if told["paused"] else ""
    size = format_mib(told["memory_mib"])
    return told["id"], told["name"], told["template"], state, told["cpus"], size, told["created_at"][:19], labels
