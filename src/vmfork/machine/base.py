"""A machine that is nobody's yet: started, perhaps paused, but not unique until it has adopted an identity."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from vmfork.adopt.handshake import adopt
from vmfork.adopt.identity import Identity, check_env
from vmfork.adopt.thaw import Thaw, check_files, thaw
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError
from vmfork.machine.ending import explained, watch_end
from vmfork.machine.handover import Parts, check_ttl, give_up, make_handle, take_over
from vmfork.machine.timings import Timings
from vmfork.machine.trace import is_detailed, tell_machine
from vmfork.machine.vm import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Hardware, Machine
    from vmfork.machine.folder import VMFolder
    from vmfork.machine.handle import VMHandle
    from vmfork.wire import Hello

# Adopting and a program, before a machine is parked: after three of them a take costs QEMU 15 ms of CPU time in place
# of 18 (TCG, side by side on a busy host), after six no less.
_REHEARSALS = 3


class BaseVM:
    """Owner of a machine whose guest has not been told who it is. `adopt` turns it into a `VM` and ends its own part.

    `spawn_s` and `answer_s` are seconds spent so far (see `Timings`); `greeting` is what the agent of a booted machine
    said of itself.
    """

    def __init__(
        self,
        *,
        folder: VMFolder,
        machine: Machine,
        agent: AgentClient,
        hardware: Hardware,
        identity: Identity,
        image: str,
        ram_inode: int,
        spawn_s: float,
        answer_s: float,
        greeting: Hello | None = None,
        todo: Thaw | None = None,
    ) -> None:
        self.greeting = greeting
        self.hardware = hardware
        self.identity = identity
        self.image = image
        self.spawn_s = spawn_s
        self.answer_s = answer_s
        self._folder = folder
        self._machine = machine
        self._agent = agent
        self._ram_inode = ram_inode
        self._todo = todo or Thaw()
        self._parked = False
        self._owned = AsyncExitStack()
        self._owned.callback(folder.close)
        self._owned.push_async_callback(machine.aclose)
        self._owned.push_async_callback(agent.aclose)

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self._machine.identity.pid

    async def adopt(
        self,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float,
        hook_timeout_s: float = 30.0,
        clock: Callable[[], int] = time.time_ns,
    ) -> VM:
        """A VM of its own, confirmed by its guest item by item. What was this object's is now the VM's.

        `clock` gives the wall clock the guest takes on, ns since 1970. `AdoptError` when the guest does not confirm
        within `timeout_s`, or a hook fails, or takes longer than `hook_timeout_s`; `LaunchError` when the machine
        ended; it is destroyed then, and on cancel.
        """
        start = time.perf_counter()
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            identity = replace(self.identity, env=check_env(env or {}))
            content = check_files(files or {})
            async with explained(self._machine, self._agent, timeout_s):
                if self._parked:
                    await self._unpark(timeout_s)
                awake = 0.0
                if is_detailed():
                    await self._agent.ping(timeout_s=timeout_s)
                    awake = time.perf_counter()
                adoption = await adopt(self._agent, identity, timeout_s=timeout_s, clock=clock)
                adopted = time.perf_counter()
                await thaw(
                    self._agent,
                    identity,
                    self._todo,
                    files=content,
                    timeout_s=timeout_s,
                    hook_timeout_s=hook_timeout_s,
                )
            on_failure.pop_all()
        self._owned.pop_all()
        machine, agent = self._machine, self._agent
        watch_end(machine, agent)
        now = time.perf_counter()
        answered = adopted - adoption.clock_s
        timings = Timings(
            spawn_s=self.spawn_s,
            answer_s=self.answer_s + (answered - start),
            load_s=self.answer_s + (awake - start) if awake else 0.0,
            adopt_s=answered - awake if awake else 0.0,
            clock_s=adoption.clock_s,
            thaw_s=now - adopted,
            total_s=self.spawn_s + self.answer_s + (now - start),
        )
        tell_machine(self._kind, timings, {"vmfork.vm": identity.vm_id, "vmfork.template": identity.template})
        return VM(
            folder=self._folder,
            machine=machine,
            agent=agent,
            hardware=self.hardware,
            identity=identity,
            adoption=adoption,
            timings=timings,
            image=self.image,
            ram_inode=self._ram_inode,
        )

    @property
    def _kind(self) -> str:
        if not self.identity.template:
            return "vmfork.boot"
        return "vmfork.fork" if self.spawn_s else "vmfork.take"

    async def park(self, *, timeout_s: float) -> None:
        """The machine was exercised and stands still: what only the first use costs was paid, mostly emulation.

        It took on identities that are thrown away, with entropy of their own, and ran programs. `adopt` lets it run on
        and gives it the one it keeps. Errors are those of `adopt`; the machine is destroyed then, and on cancel.
        """
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            async with explained(self._machine, self._agent, timeout_s):
                # The first answer of its agent waited for QEMU to load the machine's state.
                self.answer_s += await self._rehearse(timeout_s)
                for _ in range(_REHEARSALS - 1):
                    await self._rehearse(timeout_s)
                await self._machine.pause()
            on_failure.pop_all()
        self._parked = True

    async def _rehearse(self, timeout_s: float) -> float:
        """The guest adopted what it will not keep, and ran a program; seconds that adopting took."""
        rehearsed = Identity.fresh(
            self.identity.vm_id, template=self.identity.template, reseed=bool(self.identity.entropy)
        )
        begun = time.perf_counter()
        await adopt(self._agent, rehearsed, timeout_s=timeout_s)
        adopted_s = time.perf_counter() - begun
        await thaw(
            self._agent, rehearsed, Thaw(watchers=self._todo.watchers),
            files={}, timeout_s=timeout_s, hook_timeout_s=timeout_s,
        )  # fmt: skip
        with suppress(ExecError):  # an image may do without it
            await self._agent.exec(["true"], timeout_s=timeout_s)
        return adopted_s

    async def wait_up(self, *, timeout_s: float) -> None:
        """The guest runs and its agent answers. Errors are those of `adopt`; the machine is destroyed then."""
        begun = time.perf_counter()
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            async with explained(self._machine, self._agent, timeout_s):
                await self._agent.ping(timeout_s=timeout_s)
            on_failure.pop_all()
        self.answer_s += time.perf_counter() - begun

    async def check(self, *, timeout_s: float) -> None:
        """The hypervisor answers. `DeadlineExceeded` when it hangs, `LaunchError` when it ended."""
        async with explained(self._machine, self._agent, timeout_s):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._machine.check()
            except TimeoutError:
                raise DeadlineExceeded(f"the machine {self.identity.vm_id}", timeout_s) from None

    async def detach(self, *, ttl_s: float = 0.0) -> VMHandle:
        """Nobody owns the machine; who attaches it with the handle, within `ttl_s` seconds (0: no limit), does.

        This object is closed then. After an error, and on cancel, the machine is gone.
        """
        check_ttl(ttl_s)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            handle = make_handle(
                self._parts(),
                self.identity,
                hardware=self.hardware,
                image=self.image,
                ram_inode=self._ram_inode,
                timings=Timings(spawn_s=self.spawn_s, answer_s=self.answer_s, clock_s=0.0, thaw_s=0.0, total_s=0.0),
                paused=self._parked,
                todo=self._todo,
            )
            await give_up(self._parts(), handle, ttl_s=ttl_s)
            on_failure.pop_all()
        self._owned.pop_all()
        return handle

    @classmethod
    async def attach(cls, handle: VMHandle) -> Self:
        """The machine that was detached with this handle is ours. `VMNotFound`, `StoreBusy`, `HostError`.

        `ConfigError` when it has an identity of its own already. On cancel it is gone.
        """
        if handle.adoption is not None:
            raise ConfigError(
                "handle", handle.id, f"VM {handle.id} is a VM of its own", hint="attach it with VM.attach"
            )
        folder, machine, agent = await take_over(handle)
        base = cls(
            folder=folder,
            machine=machine,
            agent=agent,
            hardware=handle.hardware,
            identity=handle.identity(),
            image=handle.image,
            ram_inode=handle.ram_inode,
            spawn_s=handle.timings.spawn_s,
            answer_s=handle.timings.answer_s,
            todo=handle.todo,
        )
        base._parked = handle.paused
        return base

    def _parts(self) -> Parts:
        return Parts(self._folder, self._machine, self._agent)

    async def _unpark(self, timeout_s: float) -> None:
        # What it took to make the machine was paid before anybody asked for it.
        self.spawn_s = self.answer_s = 0.0
        try:
            async with asyncio.timeout(timeout_s):
                await self._machine.resume()
        except TimeoutError:
            raise DeadlineExceeded("letting the machine run on", timeout_s) from None
        self._parked = False

    async def aclose(self) -> None:
        """The machine is gone, unless it was adopted: then this does nothing."""
        await self._owned.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
