"""`vmfork stats`: what one machine takes, and what went through it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vmfork.api.vm import VM
from vmfork.cli.complete import living_vms
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import VMNotFound
from vmfork.machine.folder import has_broker
from vmfork.machine.naming import find_vm
from vmfork.machine.use import read_use, tell_memory
from vmfork.units import format_bytes

if TYPE_CHECKING:
    from vmfork.machine.folder import VMRecord


@click.command("stats")
@click.argument("vm_id", metavar="ID", shell_complete=living_vms)
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Show what machine ID takes of the host now: CPU, memory of its own, memory that it shares.

    Of what is shared, siblings is what it reads of the pages that it shares with other forks of one running machine;
    layer is all of those pages.

    Of a machine that `start` made also how many programs run in it, and the bytes that went in and out. Of another its
    owner alone knows that.
    """
    vms = find_places().vms
    record = find_vm(vms, vm_id)
    is_shared = has_broker(vms / record.id)
    told = run_async(_ask(record.id)) if is_shared else _look(record)
    if as_json:
        show_json({"id": record.id, "name": record.name} | told)
        return
    for name, value in told.items():
        if value is not None:
            shown = format_bytes(value) if name.endswith("_bytes") else f"{value:.1f}" if name == "cpu_s" else value
            click.echo(f"{name.removesuffix('_bytes'):10} {shown}")


async def _ask(vm_id: str) -> dict[str, Any]:
    async with VM.connect(vm_id) as vm:
        return asdict(await vm.stats())


def _look(record: VMRecord) -> dict[str, Any]:
    """What the host tells of it."""
    try:
        use = read_use(record)
    except OSError as error:
        raise VMNotFound(record.id, "it has just ended") from error
    return {"cpu_s": use.cpu_s, **tell_memory(record.facts, use.memory)} | {
        "sent_bytes": None,
        "received_bytes": None,
        "programs": None,
    }
