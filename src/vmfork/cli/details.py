"""`vmfork show`: what is known of one machine."""

from __future__ import annotations

import click

from vmfork.cli.found import describe, find, id_argument
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json


@click.command("show")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Show what is known of machine ID, which runs or ended not long ago."""
    told = describe(*find(vm_id))
    if as_json:
        show_json(told)
        return
    for name, value in told.items():
        shown = " ".join(f"{key}={text}" for key, text in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:12} {shown}".rstrip())
