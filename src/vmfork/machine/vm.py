"""A running virtual machine: programs, files, pause and end."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from vmfork.adopt.handshake import SKEW_LIMIT_S, Adoption, skew_bound_s
from vmfork.adopt.identity import check_env
from vmfork.adopt.thaw import Thaw, prepare_freeze
from vmfork.config import VMConfig, find_places
from vmfork.errors import Closed, ConfigError, GuestError
from vmfork.host.memory import MemoryUse, read_memory
from vmfork.machine.ending import watch_end
from vmfork.machine.folder import list_records, read_record
from vmfork.machine.handover import Parts, check_ttl, find_handle, give_up, make_handle, take_over
from vmfork.machine.result import ExecResult
from vmfork.machine.trace import tell_program
from vmfork.progress import ignore_progress
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from vmfork.adopt.identity import Identity
    from vmfork.adopt.secrets import Secrets
    from vmfork.agent.client import AgentClient
    from vmfork.agent.process import GuestProcess
    from vmfork.config import Places
    from vmfork.hypervisor.base import Hardware, Machine
    from vmfork.machine.folder import VMFolder, VMRecord
    from vmfork.machine.handle import VMHandle
    from vmfork.machine.timings import Timings
    from vmfork.progress import ProgressListener
    from vmfork.wire import DirEntry, FileStat

_FILE_LIMIT_S = 60.0
_QUIESCE_LIMIT_S = 60.0


class VM:
    """Owner of one running machine. Leaving its `async with` block leaves nothing behind.

    Made by `Template.fork`, `VM.boot` or a factory; when you have it, its guest runs, its agent answers, and it is
    unique.
    """

    def __init__(
        self,
        *,
        folder: VMFolder,
        machine: Machine,
        agent: AgentClient,
        hardware: Hardware,
        identity: Identity,
        adoption: Adoption,
        timings: Timings,
        image: str,
        ram_inode: int,
    ) -> None:
        self._folder = folder
        self._machine = machine
        self._agent = agent
        self._identity = identity
        self._ram_inode = ram_inode
        self._closed = False
        self._paused = False
        self._on_first_exec: Callable[[float], None] | None = None
        self.hardware = hardware
        self.adoption = adoption
        self.timings = timings
        self.image = image

    @classmethod
    async def boot(
        cls,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> VM:
        """A VM that was booted from its image (seconds, not milliseconds), has an identity of its own, and answers.

        `env` is the environment of every program in it; `files` are written into it, mode 0600. It is no fork: no
        hooks run. The image `default` is built where it is missing. `ImageNotFound`, `ConfigError`, `HostError`,
        `LaunchError`, `AdoptError`; nothing is left after any of them.
        """
        # What starts machines stands above what they are.
        from vmfork.machine.launch import boot_base  # noqa: PLC0415
        from vmfork.machine.plan import plan_boot  # noqa: PLC0415

        config = config or VMConfig()
        places = places or find_places()
        plan = await plan_boot(config, places=places, progress=progress)
        base = await boot_base(plan, places=places)
        return await base.adopt(env=env, files=files, timeout_s=config.boot_timeout_s)

    @staticmethod
    async def list(*, places: Places | None = None) -> Sequence[VMRecord]:
        """Records of the VMs that run now under these places, whoever owns them, oldest first."""
        return await asyncio.to_thread(list_records, (places or find_places()).vms)

    def __repr__(self) -> str:
        source = f"fork of {self.template!r}" if self.template else "booted"
        state = "closed" if self._closed else "paused" if self._paused else "running"
        return f"<VM {self.id} {source}, {state}>"

    @property
    def id(self) -> str:
        """12 hex digits; no other VM has or had them."""
        return self._identity.vm_id

    @property
    def template(self) -> str:
        """The template this VM is a fork of; empty for a booted one."""
        return self._identity.template

    @property
    def generation(self) -> str:
        """The generation id the guest was given, 32 hex digits."""
        return self._identity.generation.hex

    @property
    def hostname(self) -> str:
        """The guest's host name, its own among all forks."""
        return self._identity.hostname

    @property
    def machine_id(self) -> str:
        """What the guest has in /etc/machine-id, its own among all forks."""
        return self._identity.machine_id

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self._machine.identity.pid

    @property
    def accel(self) -> str:
        """`kvm` or `tcg`, as decided."""
        return self.hardware.accel

    @property
    def argv(self) -> tuple[str, ...]:
        """The hypervisor's command line."""
        return self._machine.argv

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002 - the name subprocess gave it
        clean_env: bool = False,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """The program has ended; what it wrote and its exit status. `argv` goes to the program as it is, no shell.

        A non-zero status is a result, not an error, unless `check`. `ExecError` (127, 126) when the program cannot be
        started. After `timeout_s` seconds its process group is killed and `DeadlineExceeded` carries what it wrote so
        far. Without `timeout_s` there is no limit. What its own children write after its end is not waited for.
        """
        argv = _check_argv(argv)
        data = input.encode() if isinstance(input, str) else input
        begun = time.perf_counter()
        status, stdout, stderr = await self._live_agent().exec(
            argv,
            env=check_env(env or {}),
            cwd=cwd,
            user=user,
            input=data,
            clean_env=clean_env,
            timeout_s=timeout_s,
        )
        listener, self._on_first_exec = self._on_first_exec, None
        if listener is not None:
            listener(time.perf_counter() - begun)
        result = ExecResult(
            argv=argv,
            exit_code=status.exit_code,
            duration_s=status.duration_s,
            stdout_bytes=stdout,
            stderr_bytes=stderr,
        )
        self._note_program(argv[0], time.perf_counter() - begun, status.exit_code)
        return result.check() if check else result

    async def shell(
        self,
        script: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002
        timeout_s: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """`script` was run by the guest's `/bin/sh`; otherwise as `exec`."""
        return await self.exec(
            ["/bin/sh", "-c", script], env=env, cwd=cwd, user=user, input=input, timeout_s=timeout_s, check=check
        )

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        stdin: bool = False,
        clean_env: bool = False,
        timeout_s: float = 30.0,
    ) -> GuestProcess:
        """The program runs; its owner streams what it writes, feeds it, signals it and waits for it.

        `timeout_s` bounds the start, not the run. `ExecError` (127, 126) when it cannot be started.
        """
        return await self._live_agent().start_exec(
            _check_argv(argv),
            env=check_env(env or {}),
            cwd=cwd,
            user=user,
            stdin=stdin,
            clean_env=clean_env,
            timeout_s=timeout_s,
        )

    async def read_file(self, path: str, *, timeout_s: float = _FILE_LIMIT_S) -> bytes:
        """The content of the guest's file at the absolute `path`. `GuestFileError` where it cannot be read."""
        return await self._live_agent().read_file(path, timeout_s=timeout_s)

    async def write_file(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: int = 0o644,
        parents: bool = False,
        timeout_s: float = _FILE_LIMIT_S,
    ) -> None:
        """The guest's file at the absolute `path` holds `data` (text as UTF-8); nobody saw half of it.

        With `parents`, missing folders were made. `GuestFileError` leaves the old content, if there was any.
        """
        content = data.encode() if isinstance(data, str) else data
        await self._live_agent().write_file(path, content, mode=mode, parents=parents, timeout_s=timeout_s)

    async def stat(self, path: str) -> FileStat:
        """What the guest's file system says of `path`; links are not followed."""
        return await self._live_agent().stat(path)

    async def list_dir(self, path: str) -> Sequence[DirEntry]:
        """The entries of the guest's folder `path`."""
        return await self._live_agent().list_dir(path)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Nothing is at the guest's `path`. A folder that is not empty needs `recursive`."""
        await self._live_agent().remove(path, recursive=recursive)

    async def make_dir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        """The guest has a folder at `path`."""
        await self._live_agent().make_dir(path, mode=mode, parents=parents)

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
        self._check_open()
        await self._machine.pause()
        self._paused = True

    async def resume(self) -> None:
        """The guest runs on, with the host's wall clock (its CLOCK_MONOTONIC stood still)."""
        agent = self._live_agent()
        await self._machine.resume()
        self._paused = False
        for _ in range(20):
            if skew_bound_s(await agent.clock(time.time_ns, timeout_s=_FILE_LIMIT_S)) <= SKEW_LIMIT_S:
                return

    async def save_state(self, path: Path, *, template: str, secrets: Secrets, hook_timeout_s: float) -> Thaw:
        """The guest is quiet and paused, its device state is in `path`; what its forks have to do is returned.

        Its RAM is where it was started with it. `GuestError` when a program still runs under the agent, `HookError`,
        `SecretsPresent`: it runs on then.
        """
        agent = self._live_agent()
        todo = await prepare_freeze(
            agent, self._identity, template=template, secrets=secrets, hook_timeout_s=hook_timeout_s
        )
        await agent.quiesce(timeout_s=_QUIESCE_LIMIT_S)
        await self.pause()
        await self._machine.save_state(path)
        return todo

    async def detach(self, *, ttl_s: float = 0.0) -> VMHandle:
        """Nobody owns the VM and it runs on; who attaches it, by the handle or its id, within `ttl_s` seconds does.

        0 is no limit. This object is closed then. `GuestError` while a program started by it still runs, and
        `ConfigError`: nothing has changed. After another error, and on cancel, the VM is gone.
        """
        agent = self._live_agent()
        check_ttl(ttl_s)
        parts = Parts(self._folder, self._machine, agent)
        handle = make_handle(
            parts,
            self._identity,
            hardware=self.hardware,
            image=self.image,
            ram_inode=self._ram_inode,
            timings=self.timings,
            paused=self._paused,
            adoption=self.adoption,
        )
        try:
            await give_up(parts, handle, ttl_s=ttl_s)
        except BaseException:
            if agent.lost is not None:
                await self.aclose()
            raise
        self._closed = True
        return handle

    @classmethod
    async def attach(cls, vm: VMHandle | str, *, places: Places | None = None) -> VM:
        """The VM that was detached with this handle, or under this id, is ours; it ran on meanwhile.

        `VMNotFound` when none waits, `StoreBusy` when somebody owns it, `ConfigError` for a machine that is no VM of
        its own yet. On cancel it is gone.
        """
        handle = vm
        if isinstance(handle, str):
            handle = await asyncio.to_thread(find_handle, (places or find_places()).vms, handle)
        if handle.adoption is None:
            raise ConfigError("handle", handle.id, f"machine {handle.id} has no identity yet", hint="it is a factory's")
        folder, machine, agent = await take_over(handle)
        watch_end(machine, agent)
        attached = cls(
            folder=folder,
            machine=machine,
            agent=agent,
            hardware=handle.hardware,
            identity=handle.identity(),
            adoption=handle.adoption,
            timings=handle.timings,
            image=handle.image,
            ram_inode=handle.ram_inode,
        )
        attached._paused = handle.paused
        return attached

    def memory(self) -> MemoryUse:
        """What this VM costs the host now, in bytes."""
        self._check_open()
        return read_memory(
            self.pid,
            ram_inode=self._ram_inode,
            ram_bytes=self.hardware.base_memory_mib * MIB,
            added_bytes=[size * MIB for size in self.hardware.added_mib],
        )

    def lend(self) -> tuple[Machine, AgentClient]:
        """What it consists of, for whoever changes its size. `Closed`; `GuestError` when it is paused."""
        agent = self._live_agent()
        if self._paused:
            raise GuestError(f"VM {self.id} is paused", hint="resume it first")
        return self._machine, agent

    def on_first_exec(self, listener: Callable[[float], None]) -> None:
        """`listener` will be told how many seconds the first program took that is run to its end."""
        self._on_first_exec = listener

    def tell_size(self, hardware: Hardware, *, fit_s: float) -> None:
        """The object, its record and its timings say that it was grown to `hardware` within `fit_s` seconds."""
        self.hardware = hardware
        timings = self.timings
        self.timings = replace(timings, fit_s=timings.fit_s + fit_s, total_s=timings.total_s + fit_s)
        record = read_record(self._folder.path)
        if record is not None:
            self._folder.write_record(replace(record, cpus=hardware.cpus, memory_mib=hardware.memory_mib))

    def _note_program(self, argv0: str, took_s: float, exit_code: int) -> None:
        if not self.timings.first_exec_s:
            self.timings = replace(self.timings, first_exec_s=took_s)
        tell_program(argv0, took_s, exit_code)

    def console_tail(self) -> str:
        """The end of what the guest wrote to its serial console."""
        return self._machine.console_tail()

    async def aclose(self) -> None:
        """The machine is gone: process, sockets, folder. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as stack:
            stack.callback(self._folder.close)
            stack.push_async_callback(self._machine.aclose)
            stack.push_async_callback(self._agent.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"VM {self.id}")

    def _live_agent(self) -> AgentClient:
        self._check_open()
        return self._agent


def _check_argv(argv: Sequence[str]) -> tuple[str, ...]:
    if isinstance(argv, str):
        raise ConfigError("argv", argv, "a command is a list of strings", hint="use shell() for a line of shell")
    if not argv:
        raise ConfigError("argv", argv, "a command needs at least the name of a program")
    for part in argv:
        if not isinstance(part, str) or "\0" in part:
            raise ConfigError("argv", part, "an argument must be text without NUL")
    return tuple(argv)
