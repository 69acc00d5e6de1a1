"""`vmfork show`: what is known of one machine."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.found import describe, find, id_argument, list_background
from vmfork.cli.options import json_option
from vmfork.cli.show import printable, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@click.command("show")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Show what is known of machine ID, which runs or ended not long ago."""
    record, end = find(vm_id)
    told = describe(record, end) | {"programs": list_background(record)}
    if as_json:
        show_json(told)
        return
    for name, value in told.items():
        if name == "programs":
            _show_programs(value)
            continue
        shown = " ".join(f"{key}={text}" for key, text in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:12} {shown}".rstrip())


def _show_programs(programs: Sequence[Mapping[str, Any]]) -> None:
    for each in programs:
        state = "running" if each["exit_code"] is None else f"exit status {each['exit_code']}"
        click.echo(printable(f"program      {each['pid']} ({state}) {shlex.join(each['argv'])}"))
