"""The one owner of a running machine."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol
from weakref import WeakSet

from vmfork.adopt.clock import set_clock
from vmfork.errors import Closed, DeadlineExceeded, NotOwner
from vmfork.host.bound import Bound
from vmfork.host.dropped import close_dropped
from vmfork.hypervisor.base import HANGS
from vmfork.journal import about
from vmfork.machine.facts import Described, MachineFacts
from vmfork.machine.folder import VMRecord
from vmfork.machine.left import Left
from vmfork.machine.lifetime import Life
from vmfork.network.names import Names
from vmfork.owner import Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from vmfork.agent.client import AgentClient
    from vmfork.errors import VMForkError
    from vmfork.hypervisor.base import Hardware, Machine
    from vmfork.machine.folder import VMFolder
    from vmfork.machine.origin import Origin
    from vmfork.network.forward import Forward
    from vmfork.network.neighbours import Network
    from vmfork.network.policy import NetworkPolicy
    from vmfork.network.ways import Ways
    from vmfork.wire.message import Hello

_log = logging.getLogger("vmfork")

State = Literal["running", "paused", "parked", "detached", "closed"]


class Dependent(Protocol):
    """What answers the programs of a machine, and owns what they make; it ends with the machine."""

    @property
    def children(self) -> Sequence[Owner]: ...

    def follow_children(self) -> AsyncIterator[Sequence[Owner]]:
        """`children` as it is, and whenever it has changed, until programs can ask no more."""

    def check_return(self) -> None:
        """Raises `ConfigError` when its machine cannot go back to a checkpoint."""

    async def follow(self, running: Running) -> None:
        """Programs of `running` are answered, which is in the place of its machine now."""

    async def aclose(self) -> None: ...

    def drop(self) -> None: ...


class Point(Protocol):
    """Something that a machine can go back to, as long as it is not closed."""

    def close(self) -> None: ...


class Running(Described, Owner):
    """Owner of a machine: its folder with the lock, the hypervisor's process, the line to its guest's agent.

    ```
            --- pause, park ---->
    running                       paused, parked
            <-- resume, unpark --

    any of these three --- give up -----------------------------> detached   (and a `Running` of the next owner)
                       `-- close, or the end of our process ----> closed
    ```
    | state    | the guest    | who may do what                                                               |
    | -------- | ------------ | ----------------------------------------------------------------------------- |
    | running  | runs         | its owner: everything                                                         |
    | paused   | stands still | its owner: resume, save its state, give up, close. Requests to the guest wait |
    | parked   | stands still | a pool: check, unpark, give up, close. It is nobody's yet, and its clock is old |
    | detached | as it was    | whoever has the handle: take it over. This object: nothing                    |
    | closed   | gone         | nobody                                                                        |

    With `shared` it is not ours: its broker owns it, and we are one of its clients. Then there is no parking and no
    giving up, and to close it ends our connection alone.

    What is known of the machine is in `facts`, a value: it is passed on as a whole.
    """

    def __init__(
        self,
        facts: MachineFacts,
        *,
        folder: VMFolder,
        machine: Machine,
        agent: AgentClient,
        state: State = "running",
        shared: bool = False,
    ) -> None:
        self.bound = Bound(f"VM {facts.identity.vm_id}")
        self.facts: MachineFacts = facts
        self.folder = folder
        self.machine = machine
        self.state = state
        self.is_shared = shared
        self.resizing = asyncio.Lock()
        self.names = Names(agent, folder=folder.path if shared else None)
        # What it has joined is kept for as long as it takes part.
        self.networks: list[Network] = []
        self.ways: Ways | None = None
        # What we let it reach, also when it has ended, and nothing passes any more.
        self.policy: NetworkPolicy = "none"
        self.left = Left()
        # Of every program; `None` where it was another process that gave it.
        self.env: Mapping[str, str] | None = None
        # To interpreters in the guest, `vmfork.code.line`: one that is idle saves the next call from connecting.
        self.idle_lines: list[Owner] = []
        self.inside: Dependent | None = None
        self.life = Life()
        # What is of use with it alone, and goes when it does.
        self.points: set[Point] = set()
        self.ports: WeakSet[Forward] = WeakSet()
        self._agent = agent

    @property
    def agent(self) -> AgentClient:
        """The line to its guest's agent. Raises `Closed` when the machine is not ours any more."""
        self.check_open()
        return self._agent

    @property
    def stands_still(self) -> bool:
        """Whether the guest stands still."""
        return self.state in ("paused", "parked")

    def check_open(self) -> None:
        """Raises `Closed` when the machine is not ours any more, `WrongContext` in another process or event loop."""
        self.check_ours()
        self.bound.check()

    def check_ours(self) -> None:
        """As `check_open`, for what needs no event loop: the blocking API asks for it from the caller's thread."""
        if self.state == "detached":
            raise Closed(f"VM {self.id}", "whoever has its handle or id can attach it", how="was detached")
        if self.state == "closed":
            raise Closed(f"VM {self.id}")
        self.bound.check_process()

    def check_owner(self, what: str) -> None:
        """As `check_open`. Raises `NotOwner` for one of several clients; `what` is what only an owner may do."""
        self.check_open()
        if self.is_shared:
            raise NotOwner(what, self.id)

    def _check(self, *states: State) -> None:
        self.check_open()
        assert self.state in states, f"machine {self.id} is {self.state}"  # the table above

    async def pause(self) -> None:
        """The guest stands still; its memory stays. On cancel it does, or is about to: `resume` lets it run on."""
        self._check("running", "paused")
        # Before it does: a guest that stands still is never taken for one that runs.
        self.folder.note_paused(paused=True)
        try:
            await self._stop("paused")
        except Exception:
            self.folder.note_paused(paused=self.state == "paused")
            raise

    async def park(self) -> None:
        """As `pause`, for a machine that is nobody's yet. Its taker gives it an identity and a clock."""
        await self._stop("parked")

    async def _stop(self, state: State) -> None:
        self._check("running", state)
        before, self.state = self.state, state
        try:
            await self.machine.pause()
        except Exception:
            self.state = before
            raise

    async def resume(self, *, timeout_s: float) -> None:
        """The guest runs on, with the host's wall clock (its CLOCK_MONOTONIC stood still).

        Raises `GuestError` when its clock could not be proven within `timeout_s` seconds; it runs all the same.
        """
        self._check("running", "paused")
        await self.machine.resume()
        self.state = "running"
        self.folder.note_paused(paused=False)
        await set_clock(self._agent, timeout_s=timeout_s)

    async def unpark(self, *, timeout_s: float) -> None:
        """The guest runs on, with the clock it had. Raises `DeadlineExceeded`."""
        self._check("parked")
        try:
            async with asyncio.timeout(timeout_s):
                await self.machine.resume()
        except TimeoutError:
            raise DeadlineExceeded("letting the machine run on", timeout_s, hint=HANGS) from None
        self.state = "running"

    async def check(self, *, timeout_s: float) -> None:
        """The hypervisor answers. Raises `DeadlineExceeded` when it hangs."""
        self.check_open()
        try:
            async with asyncio.timeout(timeout_s):
                await self.machine.check()
        except TimeoutError:
            raise DeadlineExceeded(f"the machine {self.id}", timeout_s, hint=HANGS) from None

    def change_hardware(self, hardware: Hardware) -> None:
        """The machine was changed while it ran: it is `hardware` now, and its record says so."""
        self.facts = replace(self.facts, hardware=hardware)
        self.record(owner_pid=os.getpid())

    def name_it(self, name: str, labels: Mapping[str, str]) -> None:
        """The machine is called `name` and has `labels`; its record says so."""
        self.facts = replace(self.facts, name=name, labels=labels)
        self.record(owner_pid=os.getpid())

    def note_agent(self, greeting: Hello) -> None:
        """What the agent said of itself is known, to whoever has the machine next as well."""
        if self.facts.make is not None:
            make = replace(
                self.facts.make,
                agent_protocol=greeting.protocol,
                agent_version=greeting.agent_version,
                agent_capabilities=tuple(sorted(greeting.capabilities)),
            )
            self.facts = replace(self.facts, make=make)

    def note_idle_ttl(self, idle_ttl_s: float) -> None:
        """How long it lives without a client is known, to whoever starts it anew."""
        self.facts = replace(self.facts, idle_ttl_s=idle_ttl_s)

    def note_origin(self, origin: Origin) -> None:
        """Where the machine came from is known, to whoever has it next as well."""
        self.facts = replace(self.facts, origin=origin)

    def record(self, *, owner_pid: int) -> None:
        """The record says what is known of the machine, and who owns it; 0 is nobody."""
        self.folder.record(VMRecord(facts=self.facts, process=self.machine.identity, owner_pid=owner_pid))

    def give_back(self) -> None:
        """Its parts are the caller's again, who closes them: this object does nothing more."""
        self.state = "closed"

    async def end_machine(self, reason: VMForkError) -> None:
        """The machine has ended, and whoever uses it, or used it, gets the reason. All else is still ours.

        It may have ended before. What was held for it in its guest is no more. On cancel it is about to end.
        """
        self.check_open()
        self._agent.fail(reason)
        if self.inside is not None:  # what its programs made is theirs, and they are gone
            await self.inside.aclose()
        self.ways = None
        self.networks.clear()
        if self.is_shared:
            await self.machine.wait()
        await self.machine.aclose()

    def succeed(self, before: Running) -> None:
        """It stands in the place of `before`, which has ended and does nothing more."""
        self.points, self.ports, self.life = before.points, before.ports, before.life
        before.give_back()

    def release_points(self) -> None:
        """Nothing is left of what it can go back to."""
        while self.points:
            self.points.pop().close()

    async def aclose(self) -> None:
        """The machine is gone: process, sockets, folder. Does nothing when it is not ours any more.

        In a forked child it does nothing: the machine is the parent's. Called from another event loop, it has the
        machine's own loop close it; where that does not run any more, it does without a loop.
        """
        if self.state in ("detached", "closed") or self.bound.is_forked:
            return
        if not self.bound.is_here:
            if not await self.bound.run_there(self.aclose):
                self.end()
            return
        self.state = "closed"
        self._log_end()
        self.release_points()
        async with AsyncExitStack() as stack:
            stack.callback(self.folder.close)
            stack.push_async_callback(self.machine.aclose)
            stack.push_async_callback(self._agent.aclose)
            if self.inside is not None:
                stack.push_async_callback(self.inside.aclose)

    def end(self) -> None:
        """As `aclose`, at once and without an event loop."""
        if self.state in ("detached", "closed"):
            return
        self.state = "closed"
        self._log_end()
        if self.inside is not None:
            self.inside.drop()
        self.release_points()
        self._agent.drop()
        self.machine.end()
        self.folder.close()

    def _log_end(self) -> None:
        _log.info("VM %s is ended", self.id, extra=about("machine.ended", vm_id=self.id, template=self.template))

    def __repr__(self) -> str:
        return f"<VM {self.id}, {self.state}>"

    def __del__(self) -> None:
        if getattr(self, "state", "closed") not in ("detached", "closed"):
            close_dropped(self, self.bound, self.end)
