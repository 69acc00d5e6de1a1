"""A machine that outlives its maker: it goes to a broker, has clients, and comes back to one owner when it is asked.

broker/README.md says what a broker does. The machine ends with it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, GuestError, HostError, MachineEnded, RolledBack, StoreBusy, VMNotFound
from vmfork.hint import Hint
from vmfork.host.broker import BROKER_SOCKET, StartingBroker
from vmfork.host.sockets import Peer, connect_unix
from vmfork.hypervisor.qemu import LOG, SharedQemu
from vmfork.machine.ended import read_reason
from vmfork.machine.ending import watch_end
from vmfork.machine.folder import BorrowedFolder, folder_of, read_brokered, sweep_ended, was_replaced
from vmfork.machine.handle import VMHandle, new_token
from vmfork.machine.handover import check_adopted, find_handle, make_handle, take_over
from vmfork.machine.lifetime import Life
from vmfork.machine.naming import find_vm, give_name
from vmfork.machine.running import Running
from vmfork.wire.frame import BrokerOpcode, encode_fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.adopt.handshake import Adoption
    from vmfork.machine.folder import VMRecord
    from vmfork.machine.request import Standing
    from vmfork.machine.timings import Timings
    from vmfork.wire.message import Hello, Kept

# The broker takes the machine within milliseconds. If it never does, since one of us was killed, the machine ends then.
_TAKE_LIMIT_S = 30.0
_GREET_LIMIT_S = 30.0


async def stand_alone(
    running: Running, standing: Standing, *, adoption: Adoption, timings: Timings, keep: Sequence[Kept] = ()
) -> Running:
    """A broker owns the machine, and we are its first client. Anybody of this user can be another.

    Of what was left in the guest, what `keep` names is left to the broker.
    Raises `VMExists` when a living VM has the name. After a failure, and on cancel, the machine is ended.
    """
    async with AsyncExitStack() as on_failure:
        on_failure.callback(running.machine.identity.kill)  # whoever owns it by then
        on_failure.push_async_callback(running.aclose)
        running.note_idle_ttl(standing.idle_ttl_s)
        await give_name(running, standing.name, standing.labels, vms=running.folder.path.parent)
        client = await _entrust(running, standing, adoption=adoption, timings=timings, keep=keep)
        on_failure.pop_all()
    return client


async def _entrust(
    running: Running, standing: Standing, *, adoption: Adoption, timings: Timings, keep: Sequence[Kept]
) -> Running:
    """A broker owns the machine, `running` is detached, and we are a client. Its times to live have begun.

    After a failure it may be ours or nobody's: then its keeper ends it in half a minute.
    """
    folder, agent = running.folder, running.agent
    greeting = await agent.hello(take_over=False, keep=keep, timeout_s=_GREET_LIMIT_S)
    handle = make_handle(running, timings=timings, adoption=adoption, ttl_s=standing.ttl_s)
    token, shared = bytes.fromhex(handle.token), replace(handle, token=_SPENT)
    with closing(await _start(folder.path)) as broker:
        with await agent.release() as sock:
            folder.write_brokered(shared.to_json())
            running.record(owner_pid=broker.pid)
            await running.machine.detach(sock, token=token, ttl_s=_TAKE_LIMIT_S)
        folder.release()
        running.state = "detached"
        lasting = {"ttl_s": standing.ttl_s, "idle_ttl_s": standing.idle_ttl_s}
        await broker.take(token=token, greeting=_encode_greeting(greeting), **lasting)
        return await join(shared)


# What clients read: the broker is told a new one when it is to give the machine up.
_SPENT = "0" * len(new_token())


async def _start(folder: Path) -> StartingBroker:
    log_fd = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return await StartingBroker.start(folder, log_fd=log_fd)
    finally:
        os.close(log_fd)


def _encode_greeting(hello: Hello) -> bytes:
    parts = hello.protocol, hello.agent_version, hello.boot_id, ",".join(sorted(hello.capabilities))
    return encode_fields(*(str(part).encode() for part in parts))


def find_waiting(vms: Path, text: str) -> tuple[VMHandle, bool]:
    """What the next owner of the machine needs, and whether a broker has it until then.

    `text` names it as in `find_vm`. Raises what that and `find_handle` raise, and `ConfigError` for a machine that has
    no identity yet.
    """
    record = find_vm(vms, text)
    data = read_brokered(vms / record.id)
    handle = find_handle(vms, record.id) if data is None else VMHandle.from_json(data)
    return check_adopted(handle), data is not None


def find_shared(vms: Path, record: VMRecord) -> VMHandle:
    """What a client needs of the machine.

    Raises `StoreBusy` when it has one owner, and `ConfigError` when it waits for one.
    """
    data = read_brokered(vms / record.id)
    if data is not None:
        return VMHandle.from_json(data)
    if record.owner_pid:
        hint = Hint(
            "it has one owner and no clients, and ends with it; what Template.start makes has clients",
            command="it has one owner and no clients, and ends with it; what vmfork start makes has clients",
        )
        raise StoreBusy(f"VM {record.id}", f"process {record.owner_pid}", hint=hint)
    hint = Hint("VM.attach takes it over", command="vmfork shell, resize and stop take it over for their time")
    raise ConfigError("vm", record.id, f"VM {record.id} waits for one owner, and has no clients", hint=hint)


async def join(handle: VMHandle) -> Running:
    """We are one of the machine's clients. Raises `VMNotFound` when its broker has ended."""
    async with AsyncExitStack() as on_failure:
        agent = await _connect(handle, on_failure)
        machine = SharedQemu.watch(handle.process, name=handle.id, folder=handle.path)
        on_failure.push_async_callback(machine.aclose)
        await agent.hello(take_over=False, timeout_s=_GREET_LIMIT_S)
        watch_end(machine, agent, find_reason=lambda: _find_reason(handle))
        running = Running(handle.facts, folder=BorrowedFolder(handle.path), machine=machine, agent=agent, shared=True)
        running.life = Life(handle.deadline_s)  # what is made of it lives no longer
        on_failure.pop_all()
    return running


def _find_reason(handle: VMHandle) -> str | RolledBack:
    """Why its broker ended the machine; empty where the broker did not, or was killed."""
    folder = folder_of(handle.path.parent, handle.id)
    return RolledBack(handle.id) if was_replaced(folder, handle.process) else read_reason(folder)


async def take_back(handle: VMHandle) -> Running:
    """The machine is ours alone; its broker has ended, and its other clients' connections with it.

    Raises `GuestError` while a program of a client runs: nothing has changed then. When we end before the machine is
    ours, it ends within half a minute.
    """
    token = new_token()
    async with AsyncExitStack() as always:
        agent = await _connect(handle, always)
        await agent.ask_broker(BrokerOpcode.RELEASE, bytes.fromhex(token), operation="taking the VM from its broker")
    running = await take_over(replace(handle, token=token))
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(running.aclose)
        if not await running.machine.is_running():  # a client may have paused it, and told nobody
            running.state = "paused"
        on_failure.pop_all()
    return running


async def stop(running: Running, *, grace_s: float) -> None:
    """The machine has ended: its guest was told to power off, and had `grace_s` seconds for it.

    One that has a broker is ended by that, even when we are gone before the time is over.
    """
    machine = running.machine
    if running.is_shared:
        with suppress(MachineEnded):  # it has ended already, and is cleaned up after all the same
            await end_now(running, grace_s=grace_s)
        await machine.wait()
        await sweep_ended(running.folder.path)
    elif grace_s > 0:
        with suppress(GuestError, TimeoutError):  # a guest that cannot is ended all the same
            await running.agent.shutdown(timeout_s=grace_s)
            await asyncio.wait_for(machine.wait(), grace_s)
    await running.aclose()


async def end_now(running: Running, *, grace_s: float = 0.0) -> None:
    """The broker of the machine, whose client we are, is ending it. Raises the reason when it has ended before."""
    ms = b"%d" % round(grace_s * 1000)
    await running.agent.ask_broker(BrokerOpcode.END, ms, operation="stopping the machine")


async def _connect(handle: VMHandle, stack: AsyncExitStack) -> AgentClient:
    """A client of the machine's broker, which `stack` closes. The broker is this user's, or root's."""
    try:
        sock = connect_unix(handle.path / BROKER_SOCKET)
    except HostError as error:
        raise VMNotFound(handle.id, "its broker has ended") from error
    stack.callback(sock.close)
    if Peer.of(sock).uid not in (0, os.geteuid()):
        raise ConfigError("vm", handle.id, f"the broker of VM {handle.id} is another user's")
    agent = await AgentClient.open(sock)
    stack.push_async_callback(agent.aclose)
    return agent
