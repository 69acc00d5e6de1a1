"""A machine changes its owner: out of one process, into another, by way of its keeper."""

from __future__ import annotations

import logging
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.adopt.todo import Thaw
from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, HostError, StoreBusy, VMNotFound
from vmfork.host.folders import find_untrusted, is_ours
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.journal import about
from vmfork.machine.folder import LOCK, VMFolder, find_record, is_vm_id, read_handle
from vmfork.machine.handle import VMHandle, new_token
from vmfork.machine.outlet import watch_outlet
from vmfork.machine.running import Running, State

if TYPE_CHECKING:
    from vmfork.adopt.handshake import Adoption
    from vmfork.machine.timings import Timings


_log = logging.getLogger("vmfork")


def make_handle(
    running: Running, *, timings: Timings, adoption: Adoption | None, todo: Thaw | None = None, ttl_s: float
) -> VMHandle:
    """What the machine's next owner needs. Nothing was done yet."""
    return VMHandle(
        facts=running.facts,
        folder=str(running.folder.path),
        process=running.machine.identity,
        token=new_token(),
        paused=running.stands_still,
        timings=timings,
        adoption=adoption,
        todo=todo or Thaw(),
        deadline_s=time.monotonic() + ttl_s if ttl_s else 0.0,
    )


def check_adopted(handle: VMHandle) -> VMHandle:
    """`handle` itself. Raises `ConfigError` for that of a machine that has no identity yet."""
    if handle.adoption is None:
        raise ConfigError("handle", handle.id, f"machine {handle.id} has no identity yet", hint="it is a factory's")
    return handle


async def give_up(
    running: Running, *, timings: Timings, adoption: Adoption | None = None, todo: Thaw | None = None, ttl_s: float
) -> VMHandle:
    """Nobody owns the machine; its keeper ends it in `ttl_s` seconds (0: never) unless it is taken with the handle.

    `adoption` is that of a VM, and missing for a base. Raises `GuestError` while something of ours runs under its
    agent: nothing has changed then. After any other failure, and on cancel, the machine is gone.
    """
    handle = make_handle(running, timings=timings, adoption=adoption, todo=todo, ttl_s=ttl_s)
    agent = running.agent
    try:
        with await agent.release() as sock:
            # Whatever a new owner reads is written before there can be one. Written later, it could overwrite the new
            # owner's own.
            running.folder.write_handle(handle.to_json())
            running.record(owner_pid=0)
            await running.machine.detach(sock, token=bytes.fromhex(handle.token), ttl_s=ttl_s)
    except BaseException:
        if agent.lost is not None:
            await running.aclose()
        raise
    running.folder.release()
    running.release_points()
    running.state = "detached"
    said = about("machine.detached", vm_id=running.id, template=running.template)
    _log.info("VM %s has no owner any more", running.id, extra=said)
    return handle


async def take_over(handle: VMHandle) -> Running:
    """The machine is ours, in the state in which it was given up.

    Raises `VMNotFound` when it does not wait under this handle, and `StoreBusy` when another process owns it. On cancel
    and after a later failure the machine is ended, because we may have spoken to it.
    """
    path = _find_folder(handle)
    async with AsyncExitStack() as on_failure:
        machine, sock, lock_fd = await QemuMachine.attach(
            path,
            handle.process,
            name=handle.id,
            token=bytes.fromhex(handle.token),
            outlet=handle.facts.outlet,
        )
        on_failure.push_async_callback(machine.aclose)
        on_failure.callback(sock.close)
        if lock_fd is None:
            raise HostError("the machine was started without a folder of its own")
        folder = VMFolder.take(path, lock_fd)
        on_failure.callback(folder.release)
        agent = await AgentClient.open(sock)
        on_failure.push_async_callback(agent.aclose)
        machine.confirm()
        state: State = "running" if not handle.paused else "paused" if handle.adoption is not None else "parked"
        running = Running(handle.facts, folder=folder, machine=machine, agent=agent, state=state)
        on_failure.pop_all()
    try:
        folder.remove_handle()
        running.record(owner_pid=os.getpid())
    except BaseException:
        await running.aclose()
        raise
    watch_outlet(running)
    said = about("machine.attached", vm_id=running.id, template=running.template)
    _log.info("VM %s was taken over", running.id, extra=said)
    return running


def _find_folder(handle: VMHandle) -> Path:
    """The machine's folder, as nobody but this user and root can have made it.

    A handle may come from anybody. One that was forged names a folder of its maker's, with a false keeper in it, and a
    process of ours: what belongs to the machine is then removed, and the process killed. So the folder must be ours by
    every step of its path, and the process the one that its former owner recorded there.
    """
    no_machine = VMNotFound(handle.id, "the handle is of no machine of this user", hint="attach it by its id")
    try:
        path = Path(os.path.realpath(handle.path, strict=True))
        untrusted = find_untrusted(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_machine from error
    if untrusted is not None:
        raise HostError(
            f"the handle of VM {handle.id} leads through {untrusted}, where others may put what they like",
            hint=f"attach it as the user that started it, from a runtime folder that is that user's alone: {path}",
        )
    record = find_record(path) if path.name == handle.id and is_ours(path, marker=LOCK) else None
    if record is None or record.process != handle.process:
        raise no_machine
    return path


def find_handle(vms: Path, vm_id: str) -> VMHandle:
    """The handle that the last owner of the VM left. Raises `VMNotFound`, or `StoreBusy` when somebody owns it now."""
    folder = vms / vm_id
    if not is_vm_id(vm_id) or not folder.is_dir():
        raise VMNotFound(vm_id)
    data = read_handle(folder)
    if data is not None:
        return VMHandle.from_json(data)
    record = find_record(folder)
    if record is not None and record.process.is_alive():
        owner = f"process {record.owner_pid}" if record.owner_pid else "another process"
        raise StoreBusy(f"VM {vm_id}", owner, hint="it must be detached there first")
    raise VMNotFound(vm_id)
