"""`vmfork resize`: another size for a machine that runs on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.complete import waiting_vms
from vmfork.cli.loop import run_async
from vmfork.cli.options import cpus_option, json_option, memory_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError, FitError
from vmfork.machine.folder import has_broker
from vmfork.machine.handover import find_handle
from vmfork.machine.naming import find_vm
from vmfork.units import format_mib, parse_size_mib

if TYPE_CHECKING:
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.handle import VMHandle


@click.command("resize")
@click.argument("vm_id", metavar="ID", shell_complete=waiting_vms)
@cpus_option
@memory_option
@json_option
def command(vm_id: str, cpus: int | None, memory: str | None, as_json: bool) -> None:
    """Give machine ID, which waits for an owner, another number of CPUs or size of memory, while it runs.

    It grows to what it was booted with room for, and shrinks to one CPU and the memory it was booted with. It is taken
    over for that moment; whoever has a handle of it finds it under its id afterwards. A machine that `start` made has
    the size that `start` gave it.
    """
    if cpus is None and memory is None:
        raise ConfigError("size", None, "no size was given", hint="give --cpus, --memory, or both")
    memory_mib = None if memory is None else parse_size_mib(memory, field="memory")
    handle = _find(vm_id)
    hardware = run_async(_resize(handle, cpus, memory_mib))
    if as_json:
        show_json({"id": handle.id, "cpus": hardware.cpus, "memory_mib": hardware.memory_mib})
        return
    click.echo(f"machine {handle.id}: {hardware.cpus} CPU, {format_mib(hardware.memory_mib)}")


def _find(text: str) -> VMHandle:
    """The handle of the machine that `text` names. Raises `ConfigError` for one that has clients."""
    vms = find_places().vms
    record = find_vm(vms, text)
    if has_broker(vms / record.id):
        hint = "vmfork start --cpus N --memory SIZE gives a machine of that size"
        raise ConfigError("id", record.id, f"machine {record.id} has clients, and the size it was given", hint=hint)
    return find_handle(vms, record.id)


async def _resize(handle: VMHandle, cpus: int | None, memory_mib: int | None) -> Hardware:
    """What the machine is made of then. It is nobody's again, with what was left of its time to live."""
    async with await VM.attach(handle) as vm:
        is_whole = True
        try:
            await vm.resize(cpus=cpus, memory_mib=memory_mib)
        except FitError as error:
            is_whole = error.rolled_back  # else it is no machine to go on with
            raise
        finally:
            hardware = vm.hardware
            if is_whole:
                await vm.detach(ttl_s=handle.left_s())
    return hardware
