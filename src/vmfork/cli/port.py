"""`vmfork port`: what leads into a machine."""

from __future__ import annotations

import click

from vmfork.cli.found import find, id_argument
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.machine.folder import folder_of
from vmfork.machine.ports import list_ports


@click.command("port")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """List the ports of machine ID that are forwarded now, and where on the host they are."""
    record, _ = find(vm_id)
    ports = list_ports(folder_of(find_places().vms, record.id))
    if as_json:
        show_json([{"guest_port": port.guest_port, "address": port.address, "pid": port.process.pid} for port in ports])
        return
    for port in ports:
        click.echo(f"{port.guest_port} -> {port.address}")
