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
    from collections.abc import Sequence


@click.command("ps")
@click.option("-a", "--all", "with_ended", is_flag=True, help="Those that ended not long ago as well.")
@click.option("--filter", "label", default="", metavar="K[=V]", help="Those with this label alone.")
@json_option
def command(with_ended: bool, label: str, as_json: bool) -> None:
    """List the machines that run, whoever owns them.

    Of machines that `start` made and that have ended, -a lists the last 64, for a day.
    """
    found = list_machines(with_ended=with_ended)
    told = [describe(record, end) for record, end in found if has_label(record.labels, label)]
    if as_json:
        show_json(told)
        return
    columns = ("id", "name", "template", "state", "cpus", "memory", "created", "labels")
    show_table([column.upper() for column in columns], [_row(each) for each in told])


def _row(told: dict[str, Any]) -> Sequence[object]:
    labels = ",".join(f"{key}={value}" for key, value in told["labels"].items())
    state = f"ended: {told['reason']}" if told["state"] == "ended" else told["state"]
    size = format_mib(told["memory_mib"])
    return told["id"], told["name"], told["template"], state, told["cpus"], size, told["created_at"][:19], labels
