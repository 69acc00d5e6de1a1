"""The blocking API: each class has the methods of its awaitable twin, run on the background loop."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

from vmfork import aio
from vmfork.portal import portal
from vmfork.progress import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from vmfork.adopt.handshake import Adoption
    from vmfork.config import FactoryConfig, Places, VMConfig
    from vmfork.factory import FactoryStats
    from vmfork.host.memory import MemoryUse
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.folder import VMRecord
    from vmfork.machine.handle import VMHandle
    from vmfork.machine.result import ExecResult
    from vmfork.machine.timings import Timings
    from vmfork.progress import ProgressListener
    from vmfork.store import Manifest
    from vmfork.template.audit import AuditReport
    from vmfork.template.probes import Probe
    from vmfork.wire.frame import Channel
    from vmfork.wire.message import DirEntry, ExecStatus, FileStat


class GuestProcess:
    """A program that runs in a guest. See `vmfork.aio.GuestProcess`."""

    def __init__(self, twin: aio.GuestProcess) -> None:
        self._twin = twin

    @property
    def pid(self) -> int:
        """The process id in the guest."""
        return self._twin.pid

    @property
    def name(self) -> str:
        """What it is called in errors: its command line."""
        return self._twin.name

    @property
    def has_ended(self) -> bool:
        """The program has ended and the agent said so, or the agent is gone."""
        return self._twin.has_ended

    def output(self) -> Iterator[tuple[Channel, bytes]]:
        """What the program writes, as it comes, until its end. The agent's loss is raised after what came before it."""
        pieces = self._twin.output()
        with suppress(StopAsyncIteration):
            while True:
                yield portal.run(_next(pieces))

    def write_stdin(self, data: bytes, *, timeout_s: float | None = None) -> None:
        """The guest has the bytes; the program may not have read them yet."""
        portal.run(self._twin.write_stdin(data, timeout_s=timeout_s))

    def close_stdin(self) -> None:
        """The program reads the end of its standard input. Closing twice is no error."""
        portal.run(self._twin.close_stdin())

    def kill(self, signal: int = 9, *, timeout_s: float | None = 10.0) -> None:
        """The signal was sent to the program's process group. Nothing happens when it has ended."""
        portal.run(self._twin.kill(signal, timeout_s=timeout_s))

    def wait(self, *, timeout_s: float | None = None) -> ExecStatus:
        """How the program ended. Takes no output: someone must, if there is more than 65,536 bytes of it."""
        return portal.run(self._twin.wait(timeout_s=timeout_s))

    def close(self) -> None:
        """The program does not run any more, and its output is thrown away."""
        portal.run(self._twin.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VM:
    """A running virtual machine. See `vmfork.aio.VM`."""

    def __init__(self, twin: aio.VM) -> None:
        self._twin = twin

    def __repr__(self) -> str:
        return repr(self._twin)

    @classmethod
    def boot(
        cls,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> VM:
        """A VM that was booted from its image (seconds, not milliseconds), has an identity of its own, and answers."""
        return cls(portal.run(aio.VM.boot(config, env=env, files=files, progress=progress, places=places)))

    @staticmethod
    def list(*, places: Places | None = None) -> Sequence[VMRecord]:
        """Records of the VMs that run now under these places, whoever owns them, oldest first."""
        return portal.run(aio.VM.list(places=places))

    @property
    def id(self) -> str:
        """12 hex digits; no other VM has or had them."""
        return self._twin.id

    @property
    def template(self) -> str:
        """The template this VM is a fork of; empty for a booted one."""
        return self._twin.template

    @property
    def generation(self) -> str:
        """The generation id the guest was given, 32 hex digits."""
        return self._twin.generation

    @property
    def hostname(self) -> str:
        """The guest's host name, its own among all forks."""
        return self._twin.hostname

    @property
    def machine_id(self) -> str:
        """What the guest has in /etc/machine-id, its own among all forks."""
        return self._twin.machine_id

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self._twin.pid

    @property
    def accel(self) -> str:
        """`kvm` or `tcg`, as decided."""
        return self._twin.accel

    @property
    def argv(self) -> tuple[str, ...]:
        """The hypervisor's command line."""
        return self._twin.argv

    @property
    def hardware(self) -> Hardware:
        """What the guest sees: machine type, accelerator, CPUs, memory."""
        return self._twin.hardware

    @property
    def adoption(self) -> Adoption:
        """What the guest confirmed of its identity."""
        return self._twin.adoption

    @property
    def timings(self) -> Timings:
        """Where the seconds went until it was handed out."""
        return self._twin.timings

    @property
    def image(self) -> str:
        """The image it was booted from, or its template was."""
        return self._twin.image

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002
        clean_env: bool = False,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """The program has ended; what it wrote and its exit status. `argv` goes to the program as it is, no shell."""
        return portal.run(
            self._twin.exec(
                argv,
                env=env,
                cwd=cwd,
                user=user,
                input=input,
                clean_env=clean_env,
                timeout_s=timeout_s,
                check=check,
            )
        )

    def shell(
        self,
        script: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        input: bytes | str | None = None,  # noqa: A002
        clean_env: bool = False,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """`script` was run by the guest's `/bin/sh`; otherwise as `exec`."""
        return portal.run(
            self._twin.shell(
                script,
                env=env,
                cwd=cwd,
                user=user,
                input=input,
                clean_env=clean_env,
                timeout_s=timeout_s,
                check=check,
            )
        )

    def start(
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
        """The program runs; its owner streams what it writes, feeds it, signals it and waits for it."""
        return GuestProcess(
            portal.run(
                self._twin.start(
                    argv, env=env, cwd=cwd, user=user, stdin=stdin, clean_env=clean_env, timeout_s=timeout_s
                )
            )
        )

    def read_file(self, path: str, *, timeout_s: float = 60.0) -> bytes:
        """The content of the guest's file at the absolute `path`. `GuestFileError` where it cannot be read."""
        return portal.run(self._twin.read_file(path, timeout_s=timeout_s))

    def write_file(
        self, path: str, data: bytes | str, *, mode: int = 0o644, parents: bool = False, timeout_s: float = 60.0
    ) -> None:
        """The guest's file at the absolute `path` holds `data` (text as UTF-8); nobody saw half of it."""
        portal.run(self._twin.write_file(path, data, mode=mode, parents=parents, timeout_s=timeout_s))

    def stat(self, path: str) -> FileStat:
        """What the guest's file system says of `path`; links are not followed."""
        return portal.run(self._twin.stat(path))

    def list_dir(self, path: str) -> Sequence[DirEntry]:
        """The entries of the guest's folder `path`."""
        return portal.run(self._twin.list_dir(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Nothing is at the guest's `path`. A folder that is not empty needs `recursive`."""
        portal.run(self._twin.remove(path, recursive=recursive))

    def make_dir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        """The guest has a folder at `path`."""
        portal.run(self._twin.make_dir(path, mode=mode, parents=parents))

    def ping(self, *, timeout_s: float = 5.0) -> float:
        """The agent answered; the round trip in seconds."""
        return portal.run(self._twin.ping(timeout_s=timeout_s))

    def measure_clock_skew(self, *, timeout_s: float = 5.0) -> float:
        """The most the guest's wall clock can differ from the host's, seconds. Includes the round trip."""
        return portal.run(self._twin.measure_clock_skew(timeout_s=timeout_s))

    def detach(self, *, ttl_s: float = 0.0) -> VMHandle:
        """The VM runs on without an owner. The first to attach it, by handle or id, within `ttl_s` seconds owns it."""
        return portal.run(self._twin.detach(ttl_s=ttl_s))

    @classmethod
    def attach(cls, vm: VMHandle | str, *, places: Places | None = None) -> VM:
        """The VM that was detached with this handle, or under this id, is ours; it ran on meanwhile."""
        return cls(portal.run(aio.VM.attach(vm, places=places)))

    def pause(self) -> None:
        """The guest stands still; its memory stays. Calls into it wait until `resume`, or for their deadline."""
        portal.run(self._twin.pause())

    def resume(self, *, timeout_s: float = 60.0) -> None:
        """The guest runs on, with the host's wall clock (its CLOCK_MONOTONIC stood still)."""
        portal.run(self._twin.resume(timeout_s=timeout_s))

    def memory(self) -> MemoryUse:
        """What this VM costs the host now, in bytes."""
        return self._twin.memory()

    def console_tail(self) -> str:
        """The end of what the guest wrote to its serial console."""
        return self._twin.console_tail()

    def close(self) -> None:
        """The machine is gone: process, sockets, folder. Closing again does nothing."""
        portal.run(self._twin.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Template:
    """A frozen machine by name. See `vmfork.aio.Template`."""

    def __init__(self, twin: aio.Template) -> None:
        self._twin = twin

    def __repr__(self) -> str:
        return repr(self._twin)

    @property
    def name(self) -> str:
        """What it is opened by."""
        return self._twin.name

    @property
    def generation(self) -> str:
        """Names this very freezing; another one of the same name has another."""
        return self._twin.generation

    @property
    def manifest(self) -> Manifest:
        """What was booted and frozen, with digests and times."""
        return self._twin.manifest

    @property
    def hardware(self) -> Hardware:
        """What its machines are made of."""
        return self._twin.hardware

    @classmethod
    def build(
        cls,
        name: str,
        config: VMConfig | None = None,
        *,
        warm_up: Sequence[str] = (),
        ready: str = "",
        env: Mapping[str, str] | None = None,
        secret_paths: Sequence[str] = (),
        secret_env: Sequence[str] = (),
        allow_secrets: bool = False,
        replace: bool = False,
        step_timeout_s: float = 600.0,
        ready_timeout_s: float = 120.0,
        wait_s: float = 0.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """A machine was booted, each `warm_up` shell command and `ready` succeeded, and it is frozen as `name`."""
        return cls(
            portal.run(
                aio.Template.build(
                    name,
                    config,
                    warm_up=warm_up,
                    ready=ready,
                    env=env,
                    secret_paths=secret_paths,
                    secret_env=secret_env,
                    allow_secrets=allow_secrets,
                    replace=replace,
                    step_timeout_s=step_timeout_s,
                    ready_timeout_s=ready_timeout_s,
                    wait_s=wait_s,
                    progress=progress,
                    places=places,
                )
            )
        )

    @classmethod
    def open(cls, name: str, *, config: VMConfig | None = None, places: Places | None = None) -> Self:
        """The template in force under `name`, its files whole, fit for this host's emulator, accelerator and image."""
        return cls(portal.run(aio.Template.open(name, config=config, places=places)))

    @classmethod
    def ensure(
        cls,
        name: str = "default",
        config: VMConfig | None = None,
        *,
        wait_s: float = 600.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """The template `name`, built first where it is missing, or fits this host or `config` no more."""
        return cls(portal.run(aio.Template.ensure(name, config, wait_s=wait_s, progress=progress, places=places)))

    @classmethod
    def list(cls, *, places: Places | None = None) -> Sequence[str]:
        """The names of all templates, sorted."""
        return portal.run(aio.Template.list(places=places))

    def fork(
        self,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
    ) -> VM:
        """A running VM that shares this template's memory copy-on-write, has an identity of its own, and answers."""
        forking = self._twin.fork(env=env, files=files, cpus=cpus, memory_mib=memory_mib, timeout_s=timeout_s)
        return VM(portal.run(forking))

    def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
    ) -> Sequence[VM]:
        """`count` forks, each as `fork` gives it, made several at a time."""
        forking = self._twin.fork_many(
            count, env=env, files=files, cpus=cpus, memory_mib=memory_mib, timeout_s=timeout_s
        )
        return [VM(vm) for vm in portal.run(forking)]

    def audit(
        self, count: int = 4, *, probes: Sequence[Probe] = (), progress: ProgressListener = ignore_progress
    ) -> AuditReport:
        """`count` forks (2 or more) were compared with each other, and closed."""
        return portal.run(self._twin.audit(count, probes=probes, progress=progress))

    def verify(self) -> None:
        """Every byte of the template is what was frozen. `TemplateCorrupt` names the file that is not."""
        portal.run(self._twin.verify())

    def remove(self) -> None:
        """No template of this name exists; forks made from it run on. `TemplateNotFound`, `StoreBusy`."""
        portal.run(self._twin.remove())


class Factory:
    """VMs on request. See `vmfork.aio.Factory`."""

    def __init__(
        self,
        config: FactoryConfig | None = None,
        *,
        fetch_only: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> None:
        self._twin = aio.Factory(config, fetch_only=fetch_only, progress=progress, places=places)

    @property
    def config(self) -> FactoryConfig:
        """The configuration it was made with."""
        return self._twin.config

    def open(self) -> Self:
        """The bases are ready. Opening again does nothing. Errors are those of the bases; it stays unopened then."""
        portal.run(self._twin.open())
        return self

    def get_vm(
        self,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float | None = None,
    ) -> VM:
        """A running VM of exactly this configuration (the factory's own by default), adopted and answering."""
        return VM(portal.run(self._twin.get_vm(config, env=env, files=files, timeout_s=timeout_s)))

    def stats(self) -> FactoryStats:
        """What was asked and given so far."""
        return self._twin.stats()

    def close(self) -> None:
        """The factory gives no more VMs, and callers that wait get `Closed`. VMs given out, and templates, stay."""
        portal.run(self._twin.aclose())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(pieces: object) -> tuple[Channel, bytes]:
    return await anext(pieces)  # type: ignore[call-overload,no-any-return]
