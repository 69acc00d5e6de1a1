"""`vmfork stop`: the end of machines that `start` made."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.each import ids_argument, on_each
from vmfork.cli.options import json_option
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.foreign import ForeignMachine
from vmfork.machine.naming import find_vm
from vmfork.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_GRACE_S = 10.0


@click.command("stop")
@ids_argument
@click.option("--grace", metavar="TIME", help="Its guest has this long to power off; 0 is none. Default: 10s.")
@json_option
def command(vm_ids: Sequence[str], grace: str | None, as_json: bool) -> None:
    """End each machine ID that `start` made, or that waits for an owner. It is gone when this command ends.

    One that another version of vmfork started, in a form that this one does not read, is ended without its guest.
    """
    grace_s = _GRACE_S if grace is None else parse_duration_s(grace, field="grace")
    on_each(vm_ids, lambda vm: vm.stop(grace_s=grace_s), "stopped", as_json=as_json, entered=_enter)


@asynccontextmanager
async def _enter(vm_id: str) -> AsyncIterator[VM | ForeignMachine]:
    """The machine may be stopped in the block: as its client, or, where it waits for an owner, as that."""
    vms = find_places().vms
    record = find_vm(vms, vm_id)
    try:
        vm = await (VM.connect(record.id) if record.owner_pid else VM.attach(record.id))
    except ConfigError as error:
        if error.field != "handle.version":
            raise
        yield ForeignMachine(vms, record)
        return
    async with vm:
        yield vm
