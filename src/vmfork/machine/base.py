"""A machine that is nobody's yet: started, perhaps parked, but not unique until it has adopted an identity."""

from __future__ import annotations

import logging
import os
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from vmfork.adopt.card import set_up_card
from vmfork.adopt.disk import set_up_disk
from vmfork.adopt.handshake import Adoption, adopt
from vmfork.adopt.identity import Identity
from vmfork.adopt.thaw import thaw
from vmfork.adopt.todo import Thaw
from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, ExecError
from vmfork.journal import about
from vmfork.machine.background import keep_left
from vmfork.machine.broker import stand_alone
from vmfork.machine.ending import explained, watch_end
from vmfork.machine.facts import Described
from vmfork.machine.fit import fit
from vmfork.machine.handover import give_up, take_over
from vmfork.machine.lifetime import Life, limit_life
from vmfork.machine.outlet import watch_outlet, wire
from vmfork.machine.request import ForkRequest, check_ttl
from vmfork.machine.running import Running
from vmfork.machine.timings import Timings
from vmfork.machine.trace import is_detailed, trace_machine
from vmfork.machine.ways import begin_ways, begin_ways_anew, with_proxy
from vmfork.owner import Owner
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from vmfork.hypervisor.base import Machine
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.folder import VMFolder
    from vmfork.machine.handle import VMHandle
    from vmfork.machine.request import Standing
    from vmfork.wire.message import Hello

    # Waits for the greeting, and raises `LaunchError` when it sees that none will come.
    Watch = Callable[[Coroutine[Any, Any, Hello], Machine], Awaitable[Hello]]

# A rehearsal is adopting and a program, before a machine is parked. After three a take costs QEMU 15 ms of CPU time in
# place of 18 (TCG, side by side on a busy host), after six no less.
_REHEARSALS = 3
_EVENTS = {"vmfork.boot": "machine.booted", "vmfork.fork": "machine.forked", "vmfork.take": "machine.taken"}
_log = logging.getLogger("vmfork")


class Adopted(NamedTuple):
    """A machine with an identity of its own. Whoever has it owns it, and closes it or makes a `VM` of it."""

    running: Running
    adoption: Adoption
    timings: Timings


class BaseVM(Described, Owner):
    """Owner of a machine whose guest has not been told who it is. `adopt` gives it an identity and a new owner.

    `spawn_s` and `answer_s` are seconds spent so far (see `Timings`); `greeting` is what the agent of a booted machine
    said of itself.
    """

    def __init__(
        self,
        running: Running,
        *,
        spawn_s: float,
        answer_s: float = 0.0,
        todo: Thaw | None = None,
    ) -> None:
        self.greeting: Hello | None = None
        self.spawn_s = spawn_s
        self.answer_s = answer_s
        self._running = running
        self._todo = todo or Thaw()
        self._is_met = False
        self._owned = AsyncExitStack()
        self._owned.push_async_callback(running.aclose)

    @classmethod
    async def meet(
        cls, facts: MachineFacts, *, folder: VMFolder, machine: Machine, spawn_s: float, todo: Thaw | None
    ) -> Self:
        """The machine that was just spawned is ours, its record is written, and its agent may be spoken to.

        Nothing was waited for. After an error folder and machine are still the caller's.
        """
        async with AsyncExitStack() as on_failure:
            agent = await AgentClient.open(machine.connect_agent())
            on_failure.push_async_callback(agent.aclose)
            running = Running(facts, folder=folder, machine=machine, agent=agent)
            on_failure.callback(running.give_back)
            running.record(owner_pid=os.getpid())
            on_failure.pop_all()
        return cls(running, spawn_s=spawn_s, todo=todo)

    @property
    def facts(self) -> MachineFacts:
        """What is known of it."""
        return self._running.facts

    @property
    def identity(self) -> Identity:
        """Who it will be."""
        return self.facts.identity

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self._running.machine.identity.pid

    async def greet(self, *, timeout_s: float, watch: Watch | None = None, memory_hint: str = "") -> None:
        """The agent of a machine that boots has answered, and `greeting` is what it said.

        `watch` looks at the guest meanwhile. Raises `LaunchError` when it does not answer within `timeout_s`. Its hint
        is `memory_hint` when the guest died for lack of memory. The machine is destroyed then, and on cancel.
        """
        machine, begun = self._running.machine, time.perf_counter()
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            async with explained(machine, self._running.agent, timeout_s, memory_hint=memory_hint):
                hello = self._running.agent.hello(timeout_s=timeout_s, take_over=False)
                self.greeting = await (hello if watch is None else watch(hello, machine))
                self._running.note_agent(self.greeting)
            on_failure.pop_all()
        self.answer_s += time.perf_counter() - begun

    async def adopt(
        self,
        request: ForkRequest | None = None,
        *,
        timeout_s: float,
        hook_timeout_s: float = 30.0,
        clock: Callable[[], int] = time.time_ns,
        standing: Standing | None = None,
    ) -> Adopted:
        """A machine of its own, as `request` asks, confirmed by its guest item by item. It is the caller's now.

        `clock` gives the wall clock the guest takes on, ns since 1970. Raises `AdoptError` when the guest does not
        confirm within `timeout_s`, or a hook fails or takes longer than `hook_timeout_s`. Raises `LaunchError` when the
        machine ended, and what `fit` raises when it could not be grown. It is destroyed then, and on cancel.

        With `standing` it is a broker's, and the caller one of its clients. Raises what `stand_alone` raises.
        """
        start = time.perf_counter()
        running, identity = self._running, self.identity
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            request = request or ForkRequest()
            agent = running.agent
            async with explained(running.machine, agent, timeout_s):
                if running.state == "parked":
                    await self._unpark(timeout_s)
                await self._greet_anew(timeout_s)
                awake = 0.0
                if is_detailed():
                    await agent.ping(timeout_s=timeout_s)
                    awake = time.perf_counter()
                env = with_proxy(request.env, request.network, identity.hostname)
                unset = self._todo.unset
                adoption = await adopt(agent, identity, env=env, unset=unset, timeout_s=timeout_s, clock=clock)
                adopted = time.perf_counter()
                if self._todo.greets:
                    await running.names.drop_inherited()
                # What is copied while it runs has its variables still: they are asked for when somebody needs them.
                running.env = None if self._todo.greets else env
                # Before the hooks: they are the first programs of the machine.
                if running.facts.card is not None:
                    await wire(running, timeout_s=timeout_s)
                    await set_up_card(agent, running.facts.card, timeout_s=timeout_s)
                if self._todo.disk_mib:
                    await set_up_disk(agent, self._todo.disk_mib, timeout_s=timeout_s)
                await begin_ways(running, request.network, timeout_s=timeout_s)
                await thaw(
                    agent,
                    identity,
                    self._todo,
                    files=request.placed,
                    timeout_s=timeout_s,
                    hook_timeout_s=hook_timeout_s,
                )
                ready = thawed = time.perf_counter()
            watch_end(running.machine, agent)
            watch_outlet(running)
            if request.grows:
                await fit(running, cpus=request.cpus, memory_mib=request.memory_mib)
                ready = time.perf_counter()
            on_failure.pop_all()
        self._owned.pop_all()
        answered = adopted - adoption.clock_s
        timings = Timings(
            spawn_s=self.spawn_s,
            answer_s=self.answer_s + (answered - start),
            load_s=self.answer_s + (awake - start) if awake else 0.0,
            adopt_s=answered - awake if awake else 0.0,
            clock_s=adoption.clock_s,
            thaw_s=thawed - adopted,
            fit_s=ready - thawed,
            total_s=self.spawn_s + self.answer_s + (ready - start),
        )
        trace_machine(self._kind, timings, {"vmfork.vm": identity.vm_id, "vmfork.template": identity.template})
        self._log_adoption(timings.total_s)
        running.life = Life.begin(ttl_s=request.ttl_s, idle_ttl_s=request.idle_ttl_s)
        limit_life(running.machine, running.agent, ttl_s=request.ttl_s, idle_ttl_s=request.idle_ttl_s)
        if standing is not None:
            left = await agent.list_left(timeout_s=timeout_s) if self._todo.keeps else ()
            running = await stand_alone(running, standing, adoption=adoption, timings=timings, keep=self._todo.keeps)
            await keep_left(running, left)
            await begin_ways_anew(running, request.network, timeout_s=timeout_s)
        return Adopted(running, adoption, timings)

    def _log_adoption(self, took_s: float) -> None:
        identity, event = self.identity, _EVENTS[self._kind]
        said = about(event, vm_id=identity.vm_id, template=identity.template, took_s=round(took_s, 6))
        _log.info("VM %s is ready after %.3f s", identity.vm_id, took_s, extra=said)

    @property
    def _kind(self) -> str:
        if not (self.identity.template or self.facts.descent.parent):
            return "vmfork.boot"
        return "vmfork.fork" if self.spawn_s else "vmfork.take"

    async def park(self, *, timeout_s: float) -> None:
        """The machine stands still, after a rehearsal that paid what only a first use costs, mostly emulation.

        It took on identities that are thrown away, with entropy of their own, and ran programs. `adopt` lets it run on
        and gives it the one it keeps. Raises what `adopt` raises; the machine is destroyed then, and on cancel.
        """
        running = self._running
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            async with explained(running.machine, running.agent, timeout_s):
                # The first answer of its agent waited for QEMU to load the machine's state.
                self.answer_s += await self._rehearse(timeout_s)
                for _ in range(_REHEARSALS - 1):
                    await self._rehearse(timeout_s)
                await running.park()
            on_failure.pop_all()

    async def _greet_anew(self, timeout_s: float) -> None:
        """Nothing of a client that spoke to the agent while the machine was copied is left, but programs to keep."""
        if self._todo.greets and not self._is_met:
            await self._running.agent.hello(take_over=True, keep=self._todo.keeps, timeout_s=timeout_s)
        self._is_met = True

    async def _rehearse(self, timeout_s: float) -> float:
        """The guest adopted an identity that it will not keep, and ran a program. Gives the seconds of adopting."""
        agent, kept = self._running.agent, self.identity
        rehearsed = Identity.fresh(kept.vm_id, template=kept.template, reseed=kept.reseed)
        begun = time.perf_counter()
        await self._greet_anew(timeout_s)
        await adopt(agent, rehearsed, timeout_s=timeout_s)
        adopted_s = time.perf_counter() - begun
        # Hooks are the user's, and run once: in the machine that is handed out.
        todo = Thaw(watchers=self._todo.watchers)
        await thaw(agent, rehearsed, todo, files={}, timeout_s=timeout_s, hook_timeout_s=timeout_s)
        with suppress(ExecError):  # an image may do without it
            await agent.exec(Command(["true"]), timeout_s=timeout_s)
        return adopted_s

    async def _unpark(self, timeout_s: float) -> None:
        # What it took to make the machine was paid before anybody asked for it.
        self.spawn_s = self.answer_s = 0.0
        await self._running.unpark(timeout_s=timeout_s)

    async def wait_up(self, *, timeout_s: float) -> None:
        """The guest runs and its agent answers. Raises what `adopt` raises; the machine is destroyed then."""
        running, begun = self._running, time.perf_counter()
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            async with explained(running.machine, running.agent, timeout_s):
                await self._greet_anew(timeout_s)
                await running.agent.ping(timeout_s=timeout_s)
            on_failure.pop_all()
        self.answer_s += time.perf_counter() - begun

    async def check(self, *, timeout_s: float) -> None:
        """The hypervisor answers. Raises `LaunchError` when it hangs or has ended."""
        async with explained(self._running.machine, self._running.agent, timeout_s):
            await self._running.check(timeout_s=timeout_s)

    async def detach(self, *, ttl_s: float = 0.0) -> VMHandle:
        """The machine has no owner. The first to attach it with the handle, within `ttl_s` seconds, owns it.

        0 is no limit. This object is closed then. After an error, and on cancel, the machine is gone.
        """
        check_ttl(ttl_s)
        timings = Timings(spawn_s=self.spawn_s, answer_s=self.answer_s, clock_s=0.0, thaw_s=0.0, total_s=0.0)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            handle = await give_up(self._running, timings=timings, todo=self._todo, ttl_s=ttl_s)
            on_failure.pop_all()
        return handle

    @classmethod
    async def attach(cls, handle: VMHandle) -> Self:
        """The machine that was detached with this handle is ours. On cancel it is gone.

        Raises `VMNotFound`, `StoreBusy`, `HostError`, and `ConfigError` when it has an identity of its own already.
        """
        if handle.adoption is not None:
            raise ConfigError(
                "handle", handle.id, f"VM {handle.id} is a VM of its own", hint="attach it with VM.attach"
            )
        running, spent = await take_over(handle), handle.timings
        return cls(running, spawn_s=spent.spawn_s, answer_s=spent.answer_s, todo=handle.todo)

    async def aclose(self) -> None:
        """The machine is gone, unless it was adopted: then this does nothing."""
        await self._owned.aclose()

    def end(self) -> None:
        """The machine is gone, at once and without an event loop."""
        self._running.end()
