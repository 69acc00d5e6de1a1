"""A running virtual machine: programs, files, pause and end."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

from vmfork.adopt.clock import skew_bound_s
from vmfork.adopt.secrets import Secrets
from vmfork.api.code import GuestCode
from vmfork.api.files import GuestFiles
from vmfork.api.limits import FORK_LIMIT_S, HOOK_LIMIT_S, RESUME_LIMIT_S
from vmfork.api.network import GuestNetwork
from vmfork.api.ports import GuestPorts
from vmfork.border import guarded
from vmfork.config import Instance, VMConfig, check_name, find_places
from vmfork.errors import ConfigError, GuestError, MachineEnded, VMForkError
from vmfork.late import import_late
from vmfork.machine.background import find_programs, start_background
from vmfork.machine.booted import boot_machine
from vmfork.machine.broker import find_shared, find_waiting, join, stop, take_back
from vmfork.machine.decoding import find_decoding
from vmfork.machine.disk import read_disk
from vmfork.machine.ending import watch_end
from vmfork.machine.facts import Described
from vmfork.machine.fit import FIT_LIMIT_S, fit
from vmfork.machine.folder import list_records, sweep_ended
from vmfork.machine.handle import VMHandle
from vmfork.machine.handover import check_adopted, give_up, take_over
from vmfork.machine.kept import choose_program
from vmfork.machine.naming import find_ended, find_ending, find_vm, has_label
from vmfork.machine.of_image import find_image_argv
from vmfork.machine.programs import find_listeners, run_program, stream_program
from vmfork.machine.request import ForkRequest, LiveFork, Standing, check_allowed, check_ttl
from vmfork.machine.use import measure_memory, read_stats
from vmfork.machine.ways import find_program_env
from vmfork.owner import Owner, gives_owner
from vmfork.progress import ignore_progress
from vmfork.template.checkpoints import remove_checkpoints
from vmfork.wire.command import NO_LIMITS, Command, Window, check_env, shell_argv
from vmfork.wire.given import MOST_BYTES, check_content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from vmfork.adopt.handshake import Adoption
    from vmfork.agent.client import AgentClient
    from vmfork.agent.process import GuestProcess
    from vmfork.api.checkpoint import Checkpoint
    from vmfork.api.template import Template
    from vmfork.config import CardChoice, LeftPrograms, Places, ProgramLimits
    from vmfork.difference.difference import Difference
    from vmfork.freeze.point import Point
    from vmfork.freeze.rollback import Return
    from vmfork.host.memory import MemoryUse
    from vmfork.machine.base import Adopted
    from vmfork.machine.decoding import OutputListener
    from vmfork.machine.event import ProgramEvent
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.folder import VMRecord
    from vmfork.machine.origin import Origin
    from vmfork.machine.result import ExecResult
    from vmfork.machine.running import Running
    from vmfork.machine.timings import Timings
    from vmfork.machine.use import Stats
    from vmfork.network.policy import NetworkPolicy
    from vmfork.progress import ProgressListener
    from vmfork.units import Size
    from vmfork.wire.given import GivenFile, GuestPath

MOST_DIFFERENCES = 1000


@guarded
class VM(GuestCode, GuestFiles, GuestPorts, GuestNetwork, Described, Owner):
    """Owner of one running machine. Leaving its `async with` block leaves nothing behind.

    Made by `Template.fork`, `VM.boot` or a factory; when you have it, its guest runs, its agent answers, and it is
    unique.
    """

    adoption: Adoption
    """What the guest confirmed of its identity."""
    timings: Timings
    """Where the seconds went until it was handed out."""

    def __init__(
        self,
        running: Running,
        adoption: Adoption,
        timings: Timings,
        *,
        origin: Origin | None = None,
        on_first_exec: Callable[[float], None] | None = None,
    ) -> None:
        self.adoption = adoption
        self.timings = timings
        self._running = running
        if origin is not None:
            running.note_origin(origin)
        self._on_first_exec = on_first_exec
        self._coming_back = asyncio.Lock()

    @classmethod
    @gives_owner
    async def boot(
        cls,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        wait_s: float | None = None,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> VM:
        """A VM that was booted from its image (seconds, not milliseconds), has an identity of its own, and answers.

        `env` is the environment of every program in it; `files` are written into it as by `Template.fork`, and `ttl_s`,
        `idle_ttl_s`, `network` and `allow_guest_fork` are as there. It is no fork, so no hooks run. The image `default`
        is built where it is missing. Where the host has no room for it, room is waited for, `wait_s` seconds at most
        (by default the configuration's). Raises `NoRoom`, `ImageNotFound`, `ConfigError`, `HostError`, `LaunchError`,
        `AdoptError`; nothing is left after any of them.
        """
        # Forks should not pay for what only booting needs, the builder of images among it.
        from vmfork.machine.prepare import prepare  # noqa: PLC0415

        request = ForkRequest(env=env or {}, files=files or {}, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s, network=network)
        request = replace(request, allow_guest_fork=allow_guest_fork)
        instance = Instance(places or find_places(), progress)
        config = config or VMConfig()
        plan = await prepare(config if wait_s is None else replace(config, wait_s=wait_s), instance)
        vm = cls(*await boot_machine(plan, request, instance=instance))
        return await allow_forks(vm, request, instance=instance)

    @staticmethod
    async def list(*, label: str = "", places: Places | None = None) -> Sequence[VMRecord]:
        """Records of the VMs that run now under these places, whoever owns them, oldest first.

        `label` is `KEY=VALUE`, or `KEY` for any value of it: only VMs with that label are given.
        """
        records = await asyncio.to_thread(list_records, (places or find_places()).vms)
        return [record for record in records if has_label(record.labels, label)]

    def __repr__(self) -> str:
        source = f"fork of {self.template!r}" if self.template else "booted"
        return f"<VM {self.id} {source}, {self._running.state}>"

    @property
    def facts(self) -> MachineFacts:
        """All that is known of it, as its record and its handle tell it."""
        return self._running.facts

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self._running.machine.identity.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The hypervisor's command line."""
        return self._running.machine.argv

    async def exec(
        self,
        argv: Sequence[GuestPath],
        *,
        env: Mapping[str, str] | None = None,
        cwd: GuestPath = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002 - the name subprocess gave it
        clean_env: bool = False,
        limits: ProgramLimits | None = None,
        on_stdout: OutputListener | None = None,
        on_stderr: OutputListener | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
        check: bool = False,
    ) -> ExecResult:
        """The program has ended; what it wrote and its exit status. `argv` goes to the program as it is, no shell.

        A non-zero status is a result, not an error, unless `check`. Raises `ExecError` (127, 126) when the program
        cannot be started. After `timeout_s` seconds its process group is sent SIGTERM, where there is a `grace_s`; that
        many seconds later it is killed with everything that it started, and `DeadlineExceeded` carries what it wrote so
        far. Without `timeout_s` there is no limit. Once standard output and
        error together have more than `max_output` bytes (256 MiB by default, `None`: no limit) it is killed too, and
        `LimitExceeded` carries the first of them. On cancel it is killed with everything that it started and that has
        not left it as a daemon. Whatever it leaves running when it ends by itself runs on; what that writes is not
        waited for.

        `on_stdout` and `on_stderr` are called with each piece of output when it comes, in the event loop; output with a
        listener is in no result, so that any amount may come. A piece is bytes, or text with `encoding` and `errors`
        (Python's names; UTF-8 and `strict` where only the other is given), of which characters are never cut. They also
        say how the result's `stdout` and `stderr` are decoded; where that is strict and fails, `ExecError` has the
        bytes. What a listener raises ends the program, and is raised as it is.

        `limits` holds the program, with all that it starts, to so much processor time, memory and processes; the
        result's `exceeded` says for which of them it was killed. Raises `GuestError` when the machine has no way to.
        """
        command = self._make_command(argv, env=env, cwd=cwd, user=user, clean_env=clean_env, limits=limits)
        decoding = find_decoding(encoding, errors)
        data = None if input is None else check_content(input, field="input")
        begun = time.perf_counter()
        result = await run_program(
            self._running,
            command,
            input=data,
            listeners=find_listeners(on_stdout, on_stderr),
            decoding=decoding,
            max_output=max_output,
            timeout_s=timeout_s,
            grace_s=grace_s,
        )
        if not self.timings.first_exec_s:
            self._note_first(time.perf_counter() - begun)
        return result.check() if check else result

    def _note_first(self, took_s: float) -> None:
        self.timings = replace(self.timings, first_exec_s=took_s)
        if self._on_first_exec is not None:
            self._on_first_exec(took_s)

    async def shell(
        self,
        script: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: GuestPath = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002
        clean_env: bool = False,
        limits: ProgramLimits | None = None,
        on_stdout: OutputListener | None = None,
        on_stderr: OutputListener | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
        check: bool = False,
    ) -> ExecResult:
        """`script` was run by the guest's `/bin/sh`; otherwise as `exec`."""
        return await self.exec(
            shell_argv(script),
            env=env,
            cwd=cwd,
            user=user,
            input=input,
            clean_env=clean_env,
            limits=limits,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            encoding=encoding,
            errors=errors,
            max_output=max_output,
            timeout_s=timeout_s,
            grace_s=grace_s,
            check=check,
        )

    @gives_owner
    async def start(
        self,
        argv: Sequence[GuestPath],
        *,
        env: Mapping[str, str] | None = None,
        cwd: GuestPath = "",
        user: str = "",
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        clean_env: bool = False,
        limits: ProgramLimits | None = None,
        background: bool = False,
        timeout_s: float = 30.0,
    ) -> GuestProcess:
        """The program runs; its owner streams what it writes, feeds it, signals it and waits for it.

        With `pty`, rows and columns, it has a terminal of that size, which controls its session: Ctrl-C reaches the job
        in the foreground, `resize` gives it another size, and TERM is `xterm-256color` unless `env` says otherwise.
        What it writes, to standard error too, and the echo of what it is sent come as one stream, standard output; it
        has standard input without `stdin`. `limits` are as for `exec`. `timeout_s` bounds the start, not the run.
        Raises `ExecError` (127, 126) when it cannot be started.

        In a machine that was started on its own (`Template.start`), a program in the `background` runs on when we
        leave, and any client finds it (`programs`). Of what it writes the end is kept, at least 64 KiB of each stream.
        """
        window = None if pty is None else Window(*pty)
        command = self._make_command(
            argv, env=env, cwd=cwd, user=user, stdin=stdin, clean_env=clean_env, window=window, limits=limits
        )
        if background:
            return await start_background(self._running, command, timeout_s=timeout_s)
        return await self._live_agent().start_exec(command, timeout_s=timeout_s)

    async def image_argv(self, arguments: Sequence[str] = (), *, timeout_s: float = 30.0) -> Sequence[str]:
        """What the container image that this machine was made of runs: its entrypoint, then its command.

        With `arguments` they are in the place of its command, as behind `docker run IMAGE`. For `exec` and `start`.
        Raises `ConfigError` where that is nothing: the image says nothing, or is no container image.
        """
        return await find_image_argv(self._running, arguments, timeout_s=timeout_s)

    async def programs(self) -> Sequence[GuestProcess]:
        """The programs in the background, whoever started them, also those of the last that have ended.

        At most 64, in the order in which they were started. In a live fork that is ours alone, those that were started
        in its parent (`exec`, `start`) and run on here. Of what one wrote since the fork 65,536 bytes a stream, and
        what its pipe holds, are kept, and then it waits until `output` takes them. To close one ends it.
        """
        return await find_programs(self._running)

    async def program(self, pid: int) -> GuestProcess:
        """The program in the background with this process id. Raises `GuestError` when there is none.

        Of several that had it one after the other, the last.
        """
        return choose_program(await find_programs(self._running), pid)

    async def follow_console(self) -> AsyncIterator[bytes]:
        """What the guest writes to its console, from what is kept of it on, until the machine ends.

        For a client of a machine that stands alone. Raises `ConfigError` for any other.
        """
        self._running.check_open()
        if not self._running.is_shared:
            hint = "see console_tail()"
            raise ConfigError("vm", self.id, "only of a machine that stands alone is the console kept so", hint=hint)
        place = 0
        with suppress(MachineEnded):
            while True:
                told = await self._running.agent.read_kept(0, place, 0)
                yield told.stdout
                place = told.from_out + len(told.stdout)

    async def stream(
        self,
        argv: Sequence[GuestPath],
        *,
        env: Mapping[str, str] | None = None,
        cwd: GuestPath = "",
        user: str = "",
        clean_env: bool = False,
        limits: ProgramLimits | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
    ) -> AsyncIterator[ProgramEvent]:
        """Runs the program and gives what it writes, as it comes; the last event is its end, with the result.

        Standard output and standard error come apart, each in its order, and between them as the agent read them. Any
        amount may come: a reader that is slow makes the program wait. With `encoding` or `errors` an event has its text
        as well. The program runs no longer than events are asked for: leaving the loop ends it, with `aclosing` at
        once. A non-zero status is no error. Raises `ExecError` (127, 126) when it cannot be started; `timeout_s` and
        `grace_s` are as for `exec`, and `DeadlineExceeded` comes behind what was written.
        """
        command = self._make_command(argv, env=env, cwd=cwd, user=user, clean_env=clean_env, limits=limits)
        decoding = find_decoding(encoding, errors)
        events = stream_program(self._running, command, decoding=decoding, timeout_s=timeout_s, grace_s=grace_s)
        async with aclosing(events):
            async for event in events:
                yield event

    async def ping(self, *, timeout_s: float = 5.0) -> float:
        """The agent answered; the round trip in seconds."""
        start = time.perf_counter()
        await self._live_agent().ping(timeout_s=timeout_s)
        return time.perf_counter() - start

    async def measure_clock_skew(self, *, timeout_s: float = 5.0) -> float:
        """The most the guest's wall clock can differ from the host's, seconds. Includes the round trip."""
        return skew_bound_s(await self._live_agent().clock(None, timeout_s=timeout_s))

    async def pause(self) -> None:
        """The guest stands still; its memory stays. Calls into it wait until `resume`, or for their deadline."""
        await self._running.pause()

    async def resume(self, *, timeout_s: float = RESUME_LIMIT_S) -> None:
        """The guest runs on, with the host's wall clock (its CLOCK_MONOTONIC stood still).

        Raises `GuestError` when the guest's clock could not be proven to be the host's within `timeout_s` seconds. The
        guest runs on all the same, with a clock that may be off.
        """
        await self._running.resume(timeout_s=timeout_s)

    async def resize(
        self, *, cpus: int | None = None, memory_mib: int | None = None, timeout_s: float = FIT_LIMIT_S
    ) -> None:
        """The guest has `cpus` CPUs and `memory_mib` MiB, and `hardware` says so. `None` leaves a size as it is.

        It grows to what it was booted with room for (`max_cpus`, `max_memory_mib`), and shrinks to one CPU and to the
        memory that it was booted with. More memory is rounded up to whole blocks of 128 MiB; less is what is left
        without the pieces that were added last. File systems in memory grow with it, and do not shrink.

        Raises `ConfigError` for a size that the machine cannot have, `NoRoom` when the host has not that much
        memory to give, and `GuestError` while the machine is paused; nothing was done then. Raises `FitError` when the
        guest has not the size within `timeout_s` seconds, or keeps memory that holds what it cannot move. The machine
        has its old size again, or, where `rolled_back` is false, must be closed.
        """
        self._running.check_owner("change its size")
        await fit(self._running, cpus=cpus, memory_mib=memory_mib, timeout_s=timeout_s)

    async def detach(self, *, ttl_s: float = 0.0) -> VMHandle:
        """The VM runs on without an owner. The first to attach it, by handle or id, within `ttl_s` seconds owns it.

        0 is no limit. This object is closed then. Raises `ConfigError` for an invalid `ttl_s`, and `GuestError` when a
        program started by it, or a VM that one made, still runs; nothing has changed then. After another error, and on
        cancel, the VM is gone.
        """
        check_ttl(ttl_s)
        self._running.check_owner("detach it")
        if await self.children():
            raise GuestError("VMs that its programs made still run", hint="close them, or wait for their end")
        return await give_up(self._running, timings=self.timings, adoption=self.adoption, ttl_s=ttl_s)

    @classmethod
    @gives_owner
    async def attach(cls, vm: VMHandle | str, *, places: Places | None = None) -> VM:
        """The VM that was detached with this handle, or under this id or name, is ours; it ran on meanwhile.

        One that was started on its own has clients until then; they lose it. Raises `VMNotFound` when none waits,
        `StoreBusy` when somebody owns it, `GuestError` while a program of a client runs, and `ConfigError` for a
        machine that has no identity yet. On cancel it is gone.
        """
        if not isinstance(vm, (VMHandle, str)):
            raise ConfigError("vm", vm, f"{vm!r} is no handle", hint="give what detach() returned, or the VM's id")
        if isinstance(vm, VMHandle):
            return cls._of(await take_over(check_adopted(vm)), vm)
        handle, has_broker = await asyncio.to_thread(find_waiting, (places or find_places()).vms, vm)
        return cls._of(await (take_back(handle) if has_broker else take_over(handle)), handle)

    @classmethod
    @gives_owner
    async def connect(cls, vm: str, *, places: Places | None = None) -> VM:
        """We are one of the clients of the VM that was started under this name or id. Closing it ends nothing.

        Its beginning is enough of an id. What only an owner may do (`resize`, `detach`) raises `NotOwner`. A program
        that a client has running ends with that client. Raises `VMNotFound`, `StoreBusy` for a VM that has one owner
        and no clients, and `ConfigError` for one that waits for an owner, or when several ids begin so.
        """
        vms = (places or find_places()).vms
        handle = await asyncio.to_thread(lambda: find_shared(vms, find_vm(vms, vm)))
        return cls._of(await join(handle), handle)

    @classmethod
    def _of(cls, running: Running, handle: VMHandle) -> VM:
        """What was just taken over, or joined, with the handle."""
        assert handle.adoption is not None
        if not running.is_shared:
            watch_end(running.machine, running.agent)
        return cls(running, handle.adoption, handle.timings)

    async def stop(self, *, grace_s: float = 10.0) -> None:
        """The machine has ended: its guest was told to power off, and had `grace_s` seconds for it.

        Any client may do that to a machine that has clients.
        """
        running = self._running
        await stop(running, grace_s=grace_s)
        await asyncio.to_thread(lambda: remove_checkpoints(self.id, places=running.folder.places))

    @overload
    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        lasting: bool = False,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        programs: LeftPrograms = "keep",
        hooks: bool = False,
        partial: Literal[False] = False,
        timeout_s: float = FORK_LIMIT_S,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> Sequence[VM]: ...

    @overload
    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        lasting: bool = False,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        programs: LeftPrograms = "keep",
        hooks: bool = False,
        partial: bool,
        timeout_s: float = FORK_LIMIT_S,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> Sequence[VM | VMForkError]: ...

    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        lasting: bool = False,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        programs: LeftPrograms = "keep",
        hooks: bool = False,
        partial: bool = False,
        timeout_s: float = FORK_LIMIT_S,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> Sequence[VM | VMForkError]:
        """`count` running VMs that go on where this one is now, each with an identity of its own; this one runs on.

        What runs in it is not disturbed: it stands still for some milliseconds, and its programs, its connections and
        its clients notice nothing. In a fork all that runs goes on; `VM.programs` has the programs that were started
        by `exec` or `start`, which nobody follows there: no `timeout_s` ends them. With `programs="end"` these end in
        it, as they do where the guest's agent is older. Connections to ports are reset in it, and nobody watches files.
        A VM that is paused is forked as it stands, and its forks run.

        `env`, `files`, `cpus`, `memory_mib`, `network`, `card`, `disk` and the times to live are as for
        `Template.fork`, and so is `allow_guest_fork`, for each of the forks by itself, whatever was allowed here. With
        `lasting` the forks outlive us, as by `Template.start`, and may have a `name` and `labels`. With `hooks` those
        of before a freeze run in this VM, and those of after a fork in each fork.

        When one fails, all are closed and its error is raised, with those of others in `siblings`; with `partial` the
        errors are in the list. Raises `ConfigError` for what cannot be asked of it, and `NoRoom` and `HostError` when
        the host has no room, before it was paused. Raises what `Template.fork` raises. Whatever is raised, and on
        cancel, this VM runs on as it did.
        """
        standing = Standing(name=name, labels=labels or {}, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s)
        if not lasting and (name or labels):
            raise ConfigError(
                "name" if name else "labels", name or labels, "only forks that last have names and labels"
            )
        request = ForkRequest(
            env=env or {},
            files=files or {},
            cpus=cpus,
            memory_mib=memory_mib,
            ttl_s=0.0 if lasting else ttl_s,
            idle_ttl_s=0.0 if lasting else idle_ttl_s,
            network=network,
            allow_guest_fork=allow_guest_fork,
            card=card,
            disk_mib=read_disk(disk),
        )
        wanted = LiveFork(
            count=count,
            request=request,
            programs=programs,
            hooks=hooks,
            standing=standing if lasting else None,
            timeout_s=timeout_s,
            hook_timeout_s=hook_timeout_s,
        )
        failures: list[VMForkError] | None = [] if partial else None
        instance = Instance(places or self._running.folder.places)
        # A VM that is not forked should not pay for it.
        fork_running = import_late("vmfork.freeze.fork", "fork_running")
        forks: list[Adopted] = await fork_running(
            self._running,
            wanted,
            instance=instance,
            finish=_allowing(allow_guest_fork, instance=instance, timeout_s=timeout_s),
            failures=failures,
        )
        return [*(VM(*each) for each in forks), *(failures or ())]

    async def children(self) -> Sequence[VM]:
        """The VMs that programs of this one have made by `vmfork_guest.fork()`, and that live; ours as this one is.

        What those make themselves are theirs, until they are closed. All end with the VM that was allowed to have any.
        """
        self._running.check_open()
        inside = self._running.inside
        return [] if inside is None else [vm for vm in inside.children if isinstance(vm, VM)]

    async def follow_children(self) -> AsyncIterator[Sequence[str]]:
        """The ids of `children`, as it is and whenever others live, until programs of this VM can fork it no more.

        Only where we let them: else there is nothing to follow.
        """
        self._running.check_open()
        if (inside := self._running.inside) is not None:
            async for children in inside.follow_children():
                yield [vm.id for vm in children if isinstance(vm, VM)]

    async def allow_guest_fork(
        self, most: int, *, timeout_s: float = FORK_LIMIT_S, places: Places | None = None
    ) -> None:
        """Programs of this VM may fork it from now on (`vmfork_guest.fork()`), to `most` machines beside it.

        They may as long as we have it. The forks are ours (`children`), and end when this VM is closed; so they do
        where we are one of several clients, of which one at a time may allow it. Each has `timeout_s` seconds to
        confirm who it is. Raises `ConfigError` for what is no such number, for a VM whose agent is too old, and where
        we allowed it before, and `GuestError` where another client does. Nothing has changed then.
        """
        running = self._running
        running.check_open()
        if not check_allowed(most):
            raise ConfigError("most", most, "at least one machine is to live beside it", hint="close it to end them")
        if running.inside is not None:
            raise ConfigError("most", most, f"programs of VM {self.id} may fork it already")
        allow = _allowing(most, instance=Instance(places or running.folder.places), timeout_s=timeout_s)
        assert allow is not None
        try:
            await allow(running)
        except BaseException:
            running.inside = None
            raise

    async def freeze(
        self,
        name: str,
        *,
        hooks: bool = False,
        secret_paths: Sequence[GuestPath] = (),
        secret_env: Sequence[str] = (),
        allow_secrets: bool = False,
        replace: bool = False,
        persist: bool = False,
        wait_s: float = 0.0,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> Template:
        """This VM as it is now is in force as the template `name`; the VM runs on.

        The template holds all of its memory, and needs neither the VM nor what that is a fork of. In its forks the
        programs that were started by `exec` or `start`, and connections to ports, have ended; whatever else runs, goes
        on. The VM is not disturbed, as by `fork`. With `hooks` those of before a freeze run in it; the forks run those
        of after a fork, as every template's do. `secret_paths`, `secret_env`, `allow_secrets`, `replace` and `wait_s`
        are as for `Template.build`. With `persist`, or where what had that name before was, it is kept on disk too.

        Raises `TemplateExists` without `replace`, `StoreBusy`, `SecretsPresent`, `HookError`, `ConfigError` for a VM
        that cannot be copied, and `HostError` when memory is short, before it was paused. After any of them, and on
        cancel, the VM runs on, and what had that name before is still in force.
        """
        check_name(name)
        paths = tuple(os.fspath(path) for path in secret_paths)
        freeze_running = import_late("vmfork.template.live", "freeze_running")
        source = await freeze_running(
            self._running,
            name,
            instance=Instance(places or self._running.folder.places),
            secrets=Secrets(paths=paths, env=tuple(secret_env), allowed=allow_secrets),
            hooks=hooks,
            hook_timeout_s=hook_timeout_s,
            replace=replace,
            persist=persist,
            wait_s=wait_s,
        )
        # A template makes VMs, so its module stands above this one.
        frozen: Template = import_late("vmfork.api.template", "Template")(source)
        return frozen

    async def diff(self, other: VM | Template, *, most: int = MOST_DIFFERENCES) -> Difference:
        """What differs between this VM and another, or a fork of a template that is made for it.

        That is files, processes and memory. Both run on, so nothing of it is of one moment. Of files and of processes
        it has the first `most`, and how many there are more. Who a VM is, which vmfork writes into it, is left out.
        Raises `ConfigError` for what is neither, `HostError` where this host lets nobody read the memory, and what
        `exec` raises.
        """
        # A template makes VMs, so its module stands above this one.
        if isinstance(other, import_late("vmfork.api.template", "Template")):
            async with await other.fork() as fork:
                return await self.diff(fork, most=most)
        if not isinstance(other, VM):
            raise ConfigError("other", other, f"{other!r} is no VM and no template", hint="give one of the two")
        compare = import_late("vmfork.difference.difference", "compare")
        found: Difference = await compare(self._running, other._running, most=most)  # noqa: SLF001 - a VM's, too
        return found

    @gives_owner
    async def checkpoint(
        self,
        *,
        lasting: bool = False,
        name: str = "",
        hooks: bool = False,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> Checkpoint:
        """This VM as it is now, to come back to by `rollback`; the VM runs on.

        It is not disturbed, as by `fork`. What it had for itself is copied, and is the host's memory until the
        checkpoint is closed, or the VM is. With `lasting` all of its memory is copied, and any client of a VM that was
        started on its own finds it, under `name` or else the next number, until it is removed or the VM was stopped.
        With `hooks` those of before a freeze run in it, and those of after a fork each time that it comes back.

        Raises `ConfigError` for a VM that cannot be copied, or that has one of that name, `HookError`, and `HostError`
        when memory is short, before it was paused. After any of them, and on cancel, the VM runs on as it did.
        """
        if name and not lasting:
            raise ConfigError("name", name, "only a checkpoint that lasts has a name", hint="give lasting=True")
        running = self._running
        running.check_open()
        # A VM that has none should not pay for it.
        if lasting:
            if not running.is_shared:
                hint = "start it with Template.start"
                raise ConfigError("lasting", True, f"VM {self.id} ends with its owner, and so do they", hint=hint)
            keep = import_late("vmfork.template.point", "keep_point")
            instance = Instance(places or running.folder.places)
            point = await keep(running, name, instance=instance, hooks=hooks, hook_timeout_s=hook_timeout_s)
        else:
            take = import_late("vmfork.freeze.point", "MemoryPoint").take
            point = await take(running, hooks=hooks, hook_timeout_s=hook_timeout_s)
        return _as_checkpoint(point)

    async def checkpoints(self, *, places: Places | None = None) -> Sequence[Checkpoint]:
        """The checkpoints of this VM that last, the oldest first, whoever made them."""
        running = self._running
        running.check_ours()
        list_points = import_late("vmfork.template.point", "list_points")
        instance = places or running.folder.places
        found = await asyncio.to_thread(lambda: list_points(self.id, running.facts, places=instance))
        return [_as_checkpoint(point) for point in found]

    async def rollback(
        self,
        checkpoint: Checkpoint | str = "",
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        network: NetworkPolicy | None = None,
        timeout_s: float = FORK_LIMIT_S,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> None:
        """This VM goes on where it was at the checkpoint, under its id, as a fork of it would.

        A name is that of one that lasts; without one it is the last of those. The VM has a generation, random numbers
        and a clock of now. Whatever it did since is gone. What was in use in it (programs of `exec` and `start`,
        connections, watches, ways to services of the host, names of a `Network`, other clients) ends by `RolledBack`,
        and what the checkpoint had of it has ended, too. Ports of the host that we lead into it stay; connections
        through them end, and who connects meanwhile waits. It may reach what we last let it, or `network`; `env` and
        `files` are given as to a fork. A pause is over. Its name, labels and times to live go on, and its programs may
        fork it where they might before; forks that they had made have ended.

        It may have ended: its guest crashed or was powered off, or its hypervisor was killed. Raises `ConfigError` for
        the checkpoint of another VM, `Closed` for one that is closed, and `MachineEnded` when the VM's time to live is
        over; nothing was done then. Raises what `Template.fork` raises: the VM has ended then, as on cancel, and may be
        rolled back again.
        """
        _check_kind(checkpoint)
        request = ForkRequest(env=env or {}, files=files or {}, network="none" if network is None else network)
        async with self._coming_back:
            running = self._running
            running.check_open()
            instance = Instance(places or running.folder.places)
            point = await _find_point(checkpoint, running.facts, instance)
            if network is None:
                request = replace(request, network=running.policy)
            how = _how(instance, timeout_s=timeout_s, hook_timeout_s=hook_timeout_s)
            back: Adopted = await import_late("vmfork.freeze.rollback", "roll_back")(running, point, request, how=how)
            self._running, self.adoption, self.timings = back
            self._on_first_exec = None

    @classmethod
    @gives_owner
    async def revive(
        cls,
        vm: str,
        checkpoint: str = "",
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        network: NetworkPolicy = "none",
        timeout_s: float = FORK_LIMIT_S,
        hook_timeout_s: float = HOOK_LIMIT_S,
        places: Places | None = None,
    ) -> VM:
        """A VM that was started on its own and has ended by itself is at its checkpoint, as by `rollback`.

        We are its first client. `vm` is its name, its id, or the beginning of one. Raises `VMNotFound` when no such VM
        has ended not long ago, and `ConfigError` when it has no such checkpoint, and what `rollback` raises.
        """
        instance = Instance(places or find_places())
        request = ForkRequest(env=env or {}, files=files or {}, network=network)
        record = await _find_ended(vm, instance.places.vms)
        point = await _find_point(checkpoint, record.facts, instance)
        how = _how(instance, timeout_s=timeout_s, hook_timeout_s=hook_timeout_s)
        revive = import_late("vmfork.freeze.rollback", "revive")
        return cls(*await revive(instance.places.vms, record.facts, point, request, how=how))

    def memory(self) -> MemoryUse:
        """What this VM costs the host now, in bytes."""
        self._running.check_ours()
        return measure_memory(self.facts, self.pid)

    async def stats(self) -> Stats:
        """What it takes of the host now, what went through it, and how many programs vmfork runs in it.

        Raises `MachineEnded`.
        """
        return await read_stats(self._running)

    def console_tail(self) -> str:
        """The end of what the guest wrote to its serial console."""
        return self._running.machine.console_tail()

    async def aclose(self) -> None:
        """The machine is gone: process, sockets, folder. Closing again does nothing."""
        running = self._running
        if running.bound.is_here:
            async with self._coming_back:  # what comes back is to be gone as well
                await self._running.aclose()
        else:
            await running.aclose()

    def _live_agent(self) -> AgentClient:
        return self._running.agent

    def _make_command(
        self,
        argv: Sequence[GuestPath],
        *,
        env: Mapping[str, str] | None,
        cwd: GuestPath,
        user: str,
        clean_env: bool,
        limits: ProgramLimits | None,
        stdin: bool = False,
        window: Window | None = None,
    ) -> Command:
        """The command, of what a caller may give: paths for text, and `None` for nothing."""
        given = check_env(env or {})
        found = {} if clean_env else find_program_env(self._running)
        return Command(
            [os.fspath(part) for part in argv],
            env={**found, **given},
            cwd=os.fspath(cwd),
            user=user,
            stdin=stdin,
            clean_env=clean_env,
            window=window,
            limits=limits or NO_LIMITS,
        )


async def allow_forks(vm: VM, request: ForkRequest, *, instance: Instance, timeout_s: float = FORK_LIMIT_S) -> VM:
    """The VM, whose programs may fork it where the request says so; each fork has `timeout_s` to confirm who it is.

    Raises `ConfigError` when its agent is too old for it, and `GuestError`; it is closed then, and on cancel.
    """
    allow = _allowing(request.allow_guest_fork, instance=instance, timeout_s=timeout_s)
    if allow is not None:
        try:
            await allow(vm._running)  # noqa: SLF001 - it belongs to the class, and is no method that people call
        except BaseException:
            await vm.aclose()
            raise
    return vm


def _allowing(most: int, *, instance: Instance, timeout_s: float) -> Callable[[Running], Awaitable[None]] | None:
    """What lets programs of a machine have so many forks of it; `None` where they may have none."""
    if not most:
        return None
    begin = import_late("vmfork.freeze.allow", "allow_forks")

    async def allow(running: Running) -> None:
        await begin(running, most, instance=instance, timeout_s=timeout_s, make_vm=lambda made: VM(*made))

    return allow


def _as_checkpoint(point: Point) -> Checkpoint:
    made: Checkpoint = import_late("vmfork.api.checkpoint", "Checkpoint")(point)
    return made


def _check_kind(checkpoint: object) -> None:
    if not isinstance(checkpoint, (str, import_late("vmfork.api.checkpoint", "Checkpoint"))):
        hint = "give one: point = vm.checkpoint()"
        raise ConfigError("checkpoint", checkpoint, f"{checkpoint!r} is no checkpoint", hint=hint)


async def _find_point(checkpoint: Checkpoint | str, facts: MachineFacts, instance: Instance) -> Point:
    """What the checkpoint is made of, or the one of that name. Raises `ConfigError` when there is none."""
    point: Point
    if isinstance(checkpoint, str):
        find, vm_id = import_late("vmfork.template.point", "find_point"), facts.identity.vm_id
        point = await asyncio.to_thread(lambda: find(vm_id, facts, checkpoint, places=instance.places))
    else:
        point = import_late("vmfork.api.checkpoint", "point_of")(checkpoint)
    return point


async def _find_ended(vm: str, vms: Path) -> VMRecord:
    """The record of the VM that has ended, also where its keeper has not yet. Raises what `find_ended` raises."""
    with suppress(VMForkError):
        record = await asyncio.to_thread(find_ending, vms, vm)
        await sweep_ended(vms / record.id)
    return await asyncio.to_thread(find_ended, vms, vm)


def _how(instance: Instance, *, timeout_s: float, hook_timeout_s: float) -> Return:
    made: Return = import_late("vmfork.freeze.rollback", "Return")(
        instance=instance, timeout_s=timeout_s, hook_timeout_s=hook_timeout_s
    )
    return made
