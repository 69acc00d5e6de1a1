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

    from vmfork.config import FactoryConfig, Places, VMConfig
    from vmfork.factory import FactoryStats
    from vmfork.host.memory import MemoryUse
    from vmfork.hypervisor.base import Hardware
    from vmfork.progress import ProgressListener
    from vmfork.store import Manifest
    from vmfork.template.audit import AuditReport
    from vmfork.template.probes import Probe
    from vmfork.vm.adopt import Adoption
    from vmfork.vm.folder import VMRecord
    from vmfork.vm.result import ExecResult, Timings
    from vmfork.wire import DirEntry, ExecStatus, FileStat
    from vmfork.wire.frame import Channel


class GuestProcess:
    """A program that runs in a guest. See `vmfork.aio.GuestProcess`."""

    def __init__(self, twin: aio.GuestProcess) -> None:
        self._twin = twin

    @property
    def pid(self) -> int:
        return self._twin.pid

    @property
    def has_ended(self) -> bool:
        return self._twin.has_ended

    def output(self) -> Iterator[tuple[Channel, bytes]]:
        pieces = self._twin.output()
        with suppress(StopAsyncIteration):
            while True:
                yield portal.run(_next(pieces))

    def write_stdin(self, data: bytes, *, timeout_s: float | None = None) -> None:
        portal.run(self._twin.write_stdin(data, timeout_s=timeout_s))

    def close_stdin(self) -> None:
        portal.run(self._twin.close_stdin())

    def kill(self, signal: int = 9, *, timeout_s: float | None = 10.0) -> None:
        portal.run(self._twin.kill(signal, timeout_s=timeout_s))

    def wait(self, *, timeout_s: float | None = None) -> ExecStatus:
        return portal.run(self._twin.wait(timeout_s=timeout_s))

    def close(self) -> None:
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
    ) -> Self:
        return cls(portal.run(aio.VM.boot(config, env=env, files=files, progress=progress, places=places)))

    @staticmethod
    def list(*, places: Places | None = None) -> Sequence[VMRecord]:
        return portal.run(aio.VM.list(places=places))

    @property
    def id(self) -> str:
        return self._twin.id

    @property
    def template(self) -> str:
        return self._twin.template

    @property
    def generation(self) -> str:
        return self._twin.generation

    @property
    def hostname(self) -> str:
        return self._twin.hostname

    @property
    def machine_id(self) -> str:
        return self._twin.machine_id

    @property
    def pid(self) -> int:
        return self._twin.pid

    @property
    def accel(self) -> str:
        return self._twin.accel

    @property
    def argv(self) -> tuple[str, ...]:
        return self._twin.argv

    @property
    def hardware(self) -> Hardware:
        return self._twin.hardware

    @property
    def adoption(self) -> Adoption:
        return self._twin.adoption

    @property
    def timings(self) -> Timings:
        return self._twin.timings

    @property
    def image(self) -> str:
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
        timeout_s: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        return portal.run(
            self._twin.shell(script, env=env, cwd=cwd, user=user, input=input, timeout_s=timeout_s, check=check)
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
        return GuestProcess(
            portal.run(
                self._twin.start(
                    argv, env=env, cwd=cwd, user=user, stdin=stdin, clean_env=clean_env, timeout_s=timeout_s
                )
            )
        )

    def read_file(self, path: str, *, timeout_s: float = 60.0) -> bytes:
        return portal.run(self._twin.read_file(path, timeout_s=timeout_s))

    def write_file(
        self, path: str, data: bytes | str, *, mode: int = 0o644, parents: bool = False, timeout_s: float = 60.0
    ) -> None:
        portal.run(self._twin.write_file(path, data, mode=mode, parents=parents, timeout_s=timeout_s))

    def stat(self, path: str) -> FileStat:
        return portal.run(self._twin.stat(path))

    def list_dir(self, path: str) -> Sequence[DirEntry]:
        return portal.run(self._twin.list_dir(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        portal.run(self._twin.remove(path, recursive=recursive))

    def make_dir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        portal.run(self._twin.make_dir(path, mode=mode, parents=parents))

    def ping(self, *, timeout_s: float = 5.0) -> float:
        return portal.run(self._twin.ping(timeout_s=timeout_s))

    def measure_clock_skew(self, *, timeout_s: float = 5.0) -> float:
        return portal.run(self._twin.measure_clock_skew(timeout_s=timeout_s))

    def pause(self) -> None:
        portal.run(self._twin.pause())

    def resume(self) -> None:
        portal.run(self._twin.resume())

    def memory(self) -> MemoryUse:
        return self._twin.memory()

    def console_tail(self) -> str:
        return self._twin.console_tail()

    def close(self) -> None:
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
        return self._twin.name

    @property
    def generation(self) -> str:
        return self._twin.generation

    @property
    def manifest(self) -> Manifest:
        return self._twin.manifest

    @property
    def hardware(self) -> Hardware:
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
        return cls(portal.run(aio.Template.ensure(name, config, wait_s=wait_s, progress=progress, places=places)))

    @classmethod
    def list(cls, *, places: Places | None = None) -> Sequence[str]:
        return portal.run(aio.Template.list(places=places))

    def fork(
        self,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float | None = None,
    ) -> VM:
        return VM(portal.run(self._twin.fork(env=env, files=files, timeout_s=timeout_s)))

    def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float | None = None,
    ) -> Sequence[VM]:
        return [VM(vm) for vm in portal.run(self._twin.fork_many(count, env=env, files=files, timeout_s=timeout_s))]

    def audit(
        self, count: int = 4, *, probes: Sequence[Probe] = (), progress: ProgressListener = ignore_progress
    ) -> AuditReport:
        return portal.run(self._twin.audit(count, probes=probes, progress=progress))

    def verify(self) -> None:
        portal.run(self._twin.verify())

    def remove(self) -> None:
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
        return self._twin.config

    def open(self) -> Self:
        portal.run(self._twin.open())
        return self

    def get_vm(
        self,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
    ) -> VM:
        return VM(portal.run(self._twin.get_vm(config, env=env, files=files)))

    def stats(self) -> FactoryStats:
        return self._twin.stats()

    def close(self) -> None:
        portal.run(self._twin.aclose())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(pieces: object) -> tuple[Channel, bytes]:
    return await anext(pieces)  # type: ignore[call-overload,no-any-return]
