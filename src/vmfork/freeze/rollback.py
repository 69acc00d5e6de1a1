"""A machine goes back to what it was: in place, under the same id, as often as is wanted.

What it is by then is ended first, whatever state it is in, so that there is never more than one of it. Then another is
started in its folder, under its lock, and adopts an identity as a fork does.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from vmfork.config import Limits
from vmfork.errors import Closed, GuestError, MachineEnded, RolledBack, VMNotFound
from vmfork.host.passt import locate_passt
from vmfork.journal import about
from vmfork.machine.again import made_again
from vmfork.machine.broker import end_now, join
from vmfork.machine.card import check_card
from vmfork.machine.emulator import find_maker
from vmfork.machine.folder import claim_folder, find_ticket, folder_of, note_replaced, read_brokered
from vmfork.machine.handle import VMHandle
from vmfork.machine.launch import bring_back
from vmfork.machine.lifetime import Life
from vmfork.machine.request import Standing
from vmfork.network.forward import drop, hold, lead_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmfork.config import Instance
    from vmfork.freeze.point import Point
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.machine.base import Adopted
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.folder import LentFolder, VMFolder
    from vmfork.machine.request import ForkRequest
    from vmfork.machine.running import Running
    from vmfork.network.forward import Forward

_log = logging.getLogger("vmfork")
FAILED = "it could not be brought back to a checkpoint"
_HINT = "roll it back again, which may do, or close it"
# A broker and a keeper end within milliseconds.
_CLAIM_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """How a machine is brought back: where, and how many seconds its guest and its hooks have for it."""

    instance: Instance
    timeout_s: float
    hook_timeout_s: float


async def roll_back(running: Running, point: Point, request: ForkRequest, *, how: Return) -> Adopted:
    """The machine goes on where it was at `point`: what is given is in its place, and `running` does nothing more.

    Its times to live go on. What was in use in it is gone; ports of the host that we lead into it stay.

    Raises what `point.check` and `find_maker` raise, and `MachineEnded` when its time to live is over; nothing was done
    then. After another error, and on cancel, the machine has ended, and may be rolled back again.
    """
    running.check_open()
    if running.inside is not None:
        running.inside.check_return()
    way = _Shared.of(running) if running.is_shared else _Owned(running)
    planned = await _plan(way, point, request, how)
    async with running.resizing:  # what a change of its size still does would be done to what comes after it
        adopted = await _go_with_ports(running, way, planned)
    adopted.running.succeed(running)
    return adopted


async def _go_with_ports(running: Running, way: _Way, planned: _Plan) -> Adopted:
    with _ports_held(running) as ports:
        adopted = await _go(way, planned)
        for port in ports:
            lead_to(port, adopted.running.agent)
    return adopted


async def revive(vms: Path, facts: MachineFacts, point: Point, request: ForkRequest, *, how: Return) -> Adopted:
    """As `roll_back`, of a machine that had clients and has ended. We are its first client."""
    way = _Shared(vms, facts)
    return await _go(way, await _plan(way, point, request, how))


class _Way(Protocol):
    """How a machine that is owned so is ended, and kept when it is back."""

    @property
    def facts(self) -> MachineFacts:
        """What is known of what it was last."""

    @property
    def path(self) -> Path:
        """Its folder, as long as nothing was done."""

    @property
    def life(self) -> Life: ...

    @property
    def standing(self) -> Standing | None:
        """How it stands alone, where it does."""

    async def end(self) -> VMFolder:
        """The machine has ended; its folder is ours."""

    async def keep(self, adopted: Adopted, folder: LentFolder) -> None:
        """What was made stands in its place. After an error it is closed."""

    async def fail(self) -> None:
        """Nothing stands in its place. It may be brought back again."""


class _Owned:
    standing = None

    def __init__(self, running: Running) -> None:
        self.facts = running.facts
        self.path = running.folder.path
        self.life = running.life
        self._running = running

    async def end(self) -> VMFolder:
        await self._running.end_machine(RolledBack(self._running.id))
        return self._running.folder

    async def keep(self, adopted: Adopted, folder: LentFolder) -> None:
        if self._running.inside is not None:
            try:
                await self._running.inside.follow(adopted.running)
            except BaseException:
                await adopted.running.aclose()
                raise
        if self._running.state == "closed":
            await adopted.running.aclose()
            raise Closed(f"VM {self._running.id}")
        folder.keep()

    async def fail(self) -> None:
        if self._running.state == "closed":
            raise Closed(f"VM {self._running.id}")
        await self._running.end_machine(MachineEnded(None, reason=FAILED, hint=_HINT))


class _Shared:
    """Its broker is ended with it, and another broker has it then: clients but us lose it, and may connect again."""

    def __init__(self, vms: Path, facts: MachineFacts, running: Running | None = None) -> None:
        self.facts = facts
        self.path = folder_of(vms, facts.identity.vm_id)
        if not self.path.exists():
            raise VMNotFound(facts.identity.vm_id)
        data = read_brokered(self.path)
        ends_at = VMHandle.from_json(data).deadline_s if data is not None else 0.0
        self.life = Life(ends_at, facts.idle_ttl_s)
        self.standing = Standing(
            name=facts.name, labels=facts.labels, ttl_s=self.life.left_s(), idle_ttl_s=self.life.idle_ttl_s
        )
        self._vms, self._running = vms, running
        self._claimed: VMFolder | None = None

    @classmethod
    def of(cls, running: Running) -> _Shared:
        return cls(running.folder.path.parent, running.facts, running)

    async def end(self) -> VMFolder:
        vm_id = self.facts.identity.vm_id
        await _end_living(self._vms / vm_id)
        if self._running is not None:
            await self._running.end_machine(RolledBack(vm_id))
        self._claimed = await claim_folder(self._vms, vm_id, wait_s=_CLAIM_LIMIT_S)
        return self._claimed

    async def keep(self, adopted: Adopted, folder: LentFolder) -> None:
        if self._running is not None and self._running.inside is not None:
            try:
                await self._running.inside.follow(adopted.running)
            except BaseException:
                adopted.running.machine.identity.kill()  # its broker has it
                await adopted.running.aclose()
                raise
        folder.forget_end()

    async def fail(self) -> None:
        if self._claimed is not None:
            self._claimed.give_up(FAILED)


async def _end_living(folder: Path) -> None:
    """The machine of the folder has ended, and its clients are told why. It may be another than the one we knew."""
    data = read_brokered(folder)
    if data is None:
        return
    handle = VMHandle.from_json(data)
    with suppress(GuestError, VMNotFound, OSError):  # it has ended, or does so now
        async with await join(handle) as client, asyncio.timeout(_CLAIM_LIMIT_S):
            note_replaced(folder, handle.process)
            await end_now(client)
            await client.machine.wait()
    # Where its keeper was killed, its broker has ended, and nobody else ends it.
    handle.process.kill()


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that is known before anything is done."""

    point: Point
    binary: QemuBinary
    limits: Limits
    request: ForkRequest
    how: Return


async def _plan(way: _Way, point: Point, request: ForkRequest, how: Return) -> _Plan:
    point.check(way.facts.identity.vm_id)
    if way.facts.card is not None:
        check_card(way.facts.card.choice, request.network)
        if way.facts.card.choice == "passt":  # before the machine has ended
            locate_passt()
    left_s = way.life.left_s()
    ticket = find_ticket(way.path)
    binary = await find_maker(point.make, places=how.instance.places)
    if way.standing is None:  # else its broker sees to that
        request = replace(request, ttl_s=left_s, idle_ttl_s=way.life.idle_ttl_s)
    return _Plan(point, binary, Limits() if ticket is None else ticket.limits, request, how)


async def _go(way: _Way, planned: _Plan) -> Adopted:
    try:
        folder = await way.end()
        adopted = await made_again(lambda: _make(way, planned, folder), accel=planned.point.hardware.accel)
    except BaseException:
        await way.fail()
        raise
    took_s = adopted.timings.total_s
    said = about("machine.rolled-back", vm_id=adopted.running.id, took_s=round(took_s, 6))
    _log.info("VM %s was rolled back in %.3f s", adopted.running.id, took_s, extra=said)
    return adopted


async def _make(way: _Way, planned: _Plan, folder: VMFolder) -> Adopted:
    lent, how = folder.lend(), planned.how
    with planned.point.open(limits=planned.limits, descent=way.facts.descent) as frozen:
        base = await bring_back(way.facts, frozen, folder=lent, binary=planned.binary, instance=how.instance)
    adopted = await base.adopt(
        planned.request, timeout_s=how.timeout_s, hook_timeout_s=how.hook_timeout_s, standing=way.standing
    )
    await way.keep(adopted, lent)
    return adopted


@contextmanager
def _ports_held(running: Running) -> Iterator[list[Forward]]:
    """Whoever connects meanwhile waits. After a failure in the block the ports have ended with their machine."""
    ports = list(running.ports)
    for port in ports:
        hold(port)
    try:
        yield ports
    except BaseException:
        for port in ports:
            drop(port)
        raise
