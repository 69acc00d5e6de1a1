"""A machine changes its owner: out of one process, into another, by way of its keeper."""

from __future__ import annotations

import math
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from vmfork.adopt.thaw import Thaw
from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, HostError, StoreBusy, VMNotFound
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.machine.folder import VMFolder, read_handle, read_record
from vmfork.machine.handle import VMHandle, is_vm_id, new_token

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.adopt.handshake import Adoption
    from vmfork.adopt.identity import Identity
    from vmfork.hypervisor.base import Hardware, Machine
    from vmfork.machine.timings import Timings


class Parts(NamedTuple):
    """What there is to own of a running machine."""

    folder: VMFolder
    machine: Machine
    agent: AgentClient


def check_ttl(ttl_s: float) -> float:
    """`ttl_s` itself, once it can be a time to live. `ConfigError` otherwise."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)) or not math.isfinite(ttl_s) or ttl_s < 0:
        raise ConfigError("ttl_s", ttl_s, "the time to live must be a number of seconds; 0 is no limit")
    return float(ttl_s)


def make_handle(
    parts: Parts,
    identity: Identity,
    *,
    hardware: Hardware,
    image: str,
    ram_inode: int,
    timings: Timings,
    paused: bool,
    adoption: Adoption | None = None,
    todo: Thaw | None = None,
) -> VMHandle:
    """A handle for the machine, with a token nobody can guess. `adoption` is that of a VM, and missing for a base."""
    process = parts.machine.identity
    return VMHandle(
        id=identity.vm_id,
        folder=str(parts.folder.path),
        pid=process.pid,
        start_ticks=process.start_ticks,
        token=new_token(),
        hardware=hardware,
        image=image,
        template=identity.template,
        generation=identity.generation.hex,
        hostname=identity.hostname,
        machine_id=identity.machine_id,
        boot_id=str(identity.boot_id),
        reseed=bool(identity.entropy),
        ram_inode=ram_inode,
        paused=paused,
        timings=timings,
        adoption=adoption,
        todo=todo or Thaw(),
    )


async def give_up(parts: Parts, handle: VMHandle, *, ttl_s: float) -> None:
    """Nobody owns the machine; its keeper ends it in `ttl_s` seconds (0: never) unless it is taken with `handle`.

    `GuestError` while something of ours runs under its agent: nothing has changed then. After any other failure, and
    on cancel, the machine must be closed.
    """
    folder, machine, agent = parts
    sock = await agent.release()
    try:
        # All that a new owner reads is there before it can be one; what we wrote later could hit what it writes.
        folder.write_handle(handle.to_json())
        folder.tell_owner(0)
        await machine.detach(sock, token=bytes.fromhex(handle.token), ttl_s=ttl_s)
    finally:
        sock.close()
    folder.release()


async def take_over(handle: VMHandle) -> Parts:
    """The machine is ours. `VMNotFound` when it does not wait under this handle, `StoreBusy` when another has it.

    Cancelled, or failing later, it is ended: there was an owner who may have spoken to it.
    """
    async with AsyncExitStack() as on_failure:
        machine, sock, lock_fd = await QemuMachine.attach(
            handle.path, handle.process, name=handle.id, token=bytes.fromhex(handle.token)
        )
        on_failure.push_async_callback(machine.aclose)
        if lock_fd is None:
            sock.close()
            raise HostError("the machine was started without a folder of its own")
        folder = VMFolder.take(handle.path, lock_fd)
        on_failure.callback(folder.release)
        agent = await AgentClient.open(sock)
        on_failure.push_async_callback(agent.aclose)
        machine.confirm()
        folder.remove_handle()
        folder.tell_owner(os.getpid())
        on_failure.pop_all()
    return Parts(folder, machine, agent)


def find_handle(vms: Path, vm_id: str) -> VMHandle:
    """The handle that the last owner of the VM left. `VMNotFound`, or `StoreBusy` when one owns it now."""
    folder = vms / vm_id
    if not is_vm_id(vm_id) or not folder.is_dir():
        raise VMNotFound(vm_id)
    data = read_handle(folder)
    if data is not None:
        return VMHandle.from_json(data)
    record = read_record(folder)
    if record is not None and record.identity.is_alive():
        owner = f"process {record.owner_pid}" if record.owner_pid else "another process"
        raise StoreBusy(f"VM {vm_id}", owner, hint="it must be detached there first")
    raise VMNotFound(vm_id)
