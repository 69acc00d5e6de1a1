"""`vmfork logs`: what a machine printed."""

from __future__ import annotations

import click

from vmfork.cli.found import find, id_argument
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.host.folders import find_content
from vmfork.hypervisor.qemu import CONSOLE
from vmfork.machine.folder import folder_of


@click.command("logs")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Print what machine ID wrote to its console, the last 64 KiB at least. It may have ended, not long ago."""
    record, _ = find(vm_id)
    text = (find_content(folder_of(find_places().vms, record.id) / CONSOLE) or b"").decode(errors="replace")
    if as_json:
        show_json({"id": record.id, "console": text})
    else:
        click.echo(text, nl=False)
