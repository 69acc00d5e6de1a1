"""A machine of a cluster, as its callers have it: a handle, which any of them can use from anywhere."""

from __future__ import annotations

import asyncio
import os
import tarfile
import tempfile
import uuid
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Literal, overload

from vmfork.api.limits import FILE_LIMIT_S, FORK_LIMIT_S, HOOK_LIMIT_S, RESUME_LIMIT_S
from vmfork.border import guarded
from vmfork.cluster.asked import read_fork_options
from vmfork.cluster.joined import find_site
from vmfork.cluster.node import PIECE_BYTES
from vmfork.copied import Copied
from vmfork.errors import ConfigError, GuestFileError, NodeLost, VMForkError
from vmfork.host.packing import base_name, check_source
from vmfork.owner import Owner
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import shell_argv
from vmfork.wire.given import MOST_BYTES, MOST_COPIED, check_local, check_path

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from vmfork.cluster.terms import Machine, Site
    from vmfork.code.result import CodeResult
    from vmfork.config import CardChoice, LeftPrograms, ProgramLimits
    from vmfork.machine.event import ProgramEvent
    from vmfork.machine.result import ExecResult
    from vmfork.machine.use import Stats
    from vmfork.network.policy import NetworkPolicy
    from vmfork.units import Size
    from vmfork.wire.given import GivenFile, GuestPath, HostPath
    from vmfork.wire.message import DirEntry, FileStat

# Whoever closes a machine waits for nobody who is on his way back.
_NOTE_LIMIT_S = 1.0


@guarded
class ClusterVM(Owner):
    """A machine on some node. Its calls go straight there. The end of its block, or `aclose`, ends the machine.

    It can be pickled, and so be passed to any task of the cluster: each copy is a handle to the same machine.
    """

    def __init__(self, machine: Machine, site: Site | None = None) -> None:
        self._machine = machine
        self._given = site

    def __repr__(self) -> str:
        return f"<ClusterVM {self.id} fork of {self.template!r} on node {self.node}>"

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[override] # what it owns is not here
        return ClusterVM, (self._machine,)

    @property
    def id(self) -> str:
        """Names the machine, in the whole cluster."""
        return self._machine.id

    @property
    def node(self) -> str:
        """The node that it is on."""
        return self._machine.node

    @property
    def template(self) -> str:
        """The template that it was forked from."""
        return self._machine.template

    @property
    def key(self) -> str:
        """What it was asked for by."""
        return self._machine.key

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
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
        check: bool = False,
    ) -> ExecResult:
        """The program has ended; what it wrote and its exit status, as `VM.exec` gives it.

        Raises what that raises, and `NodeLost` when the node ends meanwhile: nobody knows what was done then. On cancel
        the program is killed.
        """
        options = {
            "env": env, "cwd": os.fspath(cwd), "user": user, "input": input, "clean_env": clean_env, "limits": limits,
            "encoding": encoding, "errors": errors, "max_output": max_output, "timeout_s": timeout_s,
            "grace_s": grace_s,
        }  # fmt: skip
        result: ExecResult = await self._call("exec", [os.fspath(part) for part in argv], options)
        return result.check() if check else result

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
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
        check: bool = False,
    ) -> ExecResult:
        """`script` was run by the guest's `/bin/sh`; otherwise as `exec`."""
        return await self.exec(
            shell_argv(script), env=env, cwd=cwd, user=user, input=input, clean_env=clean_env, limits=limits,
            encoding=encoding, errors=errors, max_output=max_output, timeout_s=timeout_s, grace_s=grace_s, check=check,
        )  # fmt: skip

    async def run_code(
        self,
        code: str,
        language: str = "python",
        *,
        context: str | None = None,
        restart: bool = False,
        made_in: GuestPath = "",
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 5.0,
        check: bool = False,
    ) -> CodeResult:
        """The code has ended; what it gave, as `VM.run_code` gives it. Raises what that raises, and `NodeLost`."""
        options = {
            "context": context, "restart": restart, "made_in": os.fspath(made_in), "max_output": max_output,
            "timeout_s": timeout_s, "grace_s": grace_s,
        }  # fmt: skip
        result: CodeResult = await self._call("run_code", code, language, options)
        return result.check() if check else result

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
        """Runs the program and gives what it writes, as it comes, as `VM.stream` does; the last event is its end.

        Raises what that raises, and `NodeLost`. Leaving the loop ends the program, with `aclosing` at once.
        """
        options = {
            "env": env, "cwd": os.fspath(cwd), "user": user, "clean_env": clean_env, "limits": limits,
            "encoding": encoding, "errors": errors, "timeout_s": timeout_s, "grace_s": grace_s,
        }  # fmt: skip
        async with aclosing(self._stream("stream_exec", [os.fspath(part) for part in argv], options)) as events:
            async for event in events:
                yield event

    async def image_argv(self, arguments: Sequence[str] = (), *, timeout_s: float = 30.0) -> Sequence[str]:
        """What the container image that this machine was made of runs, as `VM.image_argv` gives it."""
        argv: Sequence[str] = await self._call("image_argv", [*arguments], {"timeout_s": timeout_s})
        return argv

    async def read_file(
        self, path: GuestPath, *, max_bytes: int | None = MOST_BYTES, timeout_s: float = FILE_LIMIT_S
    ) -> bytes:
        """The content of the guest's file, as `VM.read_file` gives it."""
        options = {"max_bytes": max_bytes, "timeout_s": timeout_s}
        content: bytes = await self._call("read_file", os.fspath(path), options)
        return content

    async def write_file(
        self,
        path: GuestPath,
        data: bytes | str,
        *,
        mode: int | None = None,
        parents: bool = False,
        timeout_s: float = FILE_LIMIT_S,
    ) -> None:
        """The guest's file has the content, as by `VM.write_file`."""
        content = data.encode() if isinstance(data, str) else data
        options = {"mode": mode, "parents": parents, "timeout_s": timeout_s}
        await self._call("write_file", os.fspath(path), content, options)

    async def stat(self, path: GuestPath) -> FileStat:
        """What the guest's file system says of `path`, as `VM.stat` gives it."""
        told: FileStat = await self._call("stat", os.fspath(path))
        return told

    async def exists(self, path: GuestPath) -> bool:
        """Whether there is something at the guest's `path`; a link counts, wherever it leads."""
        is_there: bool = await self._call("exists", os.fspath(path))
        return is_there

    async def is_dir(self, path: GuestPath) -> bool:
        """Whether there is a folder at the guest's `path`, or a link to one."""
        is_folder: bool = await self._call("is_dir", os.fspath(path))
        return is_folder

    async def list_dir(
        self,
        path: GuestPath,
        *,
        recursive: bool = False,
        glob: str | None = None,
        max_bytes: int | None = MOST_BYTES,
        timeout_s: float | None = None,
    ) -> Sequence[DirEntry]:
        """The entries of the guest's folder `path`, as `VM.list_dir` gives them."""
        options = {"recursive": recursive, "glob": glob, "max_bytes": max_bytes, "timeout_s": timeout_s}
        entries: Sequence[DirEntry] = await self._call("list_dir", os.fspath(path), options)
        return entries

    async def remove(self, path: GuestPath, *, recursive: bool = False, timeout_s: float | None = None) -> None:
        """Nothing is at the guest's `path`, as by `VM.remove`."""
        await self._call("remove", os.fspath(path), {"recursive": recursive, "timeout_s": timeout_s})

    async def make_dir(self, path: GuestPath, *, mode: int = 0o755, parents: bool = False) -> None:
        """The guest has a folder at `path`."""
        await self._call("make_dir", os.fspath(path), {"mode": mode, "parents": parents})

    async def move(self, path: GuestPath, to: GuestPath) -> None:
        """What was at the guest's `path` is at `to`, at once, as by `VM.move`."""
        await self._call("move", os.fspath(path), os.fspath(to))

    async def chmod(self, path: GuestPath, mode: int) -> None:
        """The guest's file or folder at `path` has that mode, such as 0o755. A link is followed."""
        await self._call("chmod", os.fspath(path), mode)

    async def chown(self, path: GuestPath, *, user: str = "", group: str = "") -> None:
        """The guest's file or folder at `path` is `user`'s, and `group`'s, as by `VM.chown`."""
        await self._call("chown", os.fspath(path), {"user": user, "group": group})

    async def put(
        self, local: HostPath, guest: GuestPath, *, parents: bool = False, timeout_s: float | None = None
    ) -> Copied:
        """The guest has a copy of our file or folder `local` at `guest`; of a file, in the folder there.

        As `VM.put`: a folder that is there is added to. With `parents`, missing folders were made. It travels as a tar,
        a piece at a time.
        """
        source, path = check_local(local), check_path(guest, field="guest")
        await asyncio.to_thread(check_source, source)
        is_folder, token = await asyncio.to_thread(os.path.isdir, source), uuid.uuid4().hex
        if await self._call("is_dir", path):
            folder, name = path, "." if is_folder else base_name(source)
        elif path.endswith("/") and not is_folder:
            raise GuestFileError("copying to", path, ErrorCode.NOT_DIRECTORY, "Not a directory", hint="make it first")
        else:
            folder, name = os.path.split(path.rstrip("/"))
            if parents and folder:
                await self.make_dir(folder, parents=True)
        with tempfile.TemporaryFile(prefix="vmfork-cluster-") as spool:
            await asyncio.to_thread(_write_tar, spool, source, name)
            sent = 0
            while piece := await asyncio.to_thread(spool.read, PIECE_BYTES):
                await self._call_node("spool", token, piece, sent)
                sent += len(piece)
        copied: Copied = await self._call("put", token, sent, folder or "/", {"timeout_s": timeout_s})
        return copied

    async def get(
        self,
        guest: GuestPath,
        local: HostPath,
        *,
        max_bytes: int | None = MOST_COPIED,
        timeout_s: float | None = None,
    ) -> Copied:
        """Here is a copy of the guest's file or folder `guest` at `local`; of a file, in the folder there.

        As `VM.get`; links that lead out of the copy are errors, and everything is ours.
        """
        path, target = check_path(guest, field="guest"), check_local(local)
        into = await asyncio.to_thread(os.path.isdir, target)
        above = os.path.dirname(target.rstrip("/")) or "."
        if not into and not await asyncio.to_thread(os.path.isdir, above):
            hint = "name a place in a folder that is here"
            raise ConfigError("local", local, f"{target!r} cannot be written: there is no folder {above}", hint=hint)
        if await self._call("is_dir", path) and into:
            path = f"{path.rstrip('/')}/."
        copied = Copied()
        options = {"max_bytes": max_bytes, "timeout_s": timeout_s}
        with tempfile.TemporaryFile(prefix="vmfork-cluster-") as spool:
            async with aclosing(self._stream("get", path, options)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Copied):
                        copied = piece
                    else:
                        await asyncio.to_thread(spool.write, piece)
            await asyncio.to_thread(_read_tar, spool, target, into=into)
        return copied

    async def pause(self) -> None:
        """The guest stands still; its memory stays. Calls into it wait until `resume`, or for their deadline."""
        await self._call("pause")

    async def resume(self, *, timeout_s: float = RESUME_LIMIT_S) -> None:
        """The guest runs on, with its node's wall clock, as by `VM.resume`."""
        await self._call("resume", {"timeout_s": timeout_s})

    async def ping(self, *, timeout_s: float = 5.0) -> float:
        """The agent answered its node; the round trip between these in seconds."""
        took_s: float = await self._call("ping", {"timeout_s": timeout_s})
        return took_s

    async def stats(self) -> Stats:
        """What it takes of its node now, and what went through it, as `VM.stats` gives it."""
        told: Stats = await self._call("stats")
        return told

    async def console_tail(self) -> str:
        """The end of what the guest wrote to its serial console."""
        told: str = await self._call("console_tail")
        return told

    @overload
    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
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
    ) -> Sequence[ClusterVM]: ...

    @overload
    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
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
    ) -> Sequence[ClusterVM | VMForkError]: ...

    async def fork(
        self,
        count: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
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
    ) -> Sequence[ClusterVM | VMForkError]:
        """`count` forks of this machine as it is now, on its node; it runs on. As `VM.fork`.

        They end when this program does, as machines of `Cluster.fork` that do not last.
        """
        options = await read_fork_options(
            files, env=env, cpus=cpus, memory_mib=memory_mib, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s, network=network,
            card=card, disk=disk, allow_guest_fork=allow_guest_fork, timeout_s=timeout_s,
        )  # fmt: skip
        options |= {"programs": programs, "hooks": hooks, "partial": partial, "hook_timeout_s": hook_timeout_s}
        site, key = self._site(), uuid.uuid4().hex
        made: Sequence[Machine | VMForkError] = await self._call("fork_vm", count, key, site.client, options)
        return [each if isinstance(each, VMForkError) else ClusterVM(each, site) for each in made]

    async def aclose(self) -> None:
        """The machine is gone. One that went with its node is no error. Closing again does nothing.

        Raises `NodeLost` for one that lasts where its node cannot be asked: it may run on. Close it again later.
        """
        try:
            await self._call("close")
        except NodeLost:
            if self._machine.lasts:
                raise
            return
        with suppress(VMForkError, TimeoutError):  # else it learns it from the node
            await asyncio.wait_for(self._site().ask("note_end", self._machine), _NOTE_LIMIT_S)

    def _site(self) -> Site:
        if self._given is None:
            # Only a copy that was passed on comes here: its list is open in this process, or what carried it is.
            self._given = find_site(self.node)
        return self._given

    async def _call(self, verb: str, *args: Any) -> Any:
        return await self._call_node(verb, self.id, *args)

    async def _call_node(self, verb: str, *args: Any) -> Any:
        try:
            return await self._site().call(self.node, verb, *args)
        except NodeLost as error:
            raise NodeLost(self.node, (self.id,), error.reason, is_cut=error.is_cut) from error

    async def _stream(self, verb: str, *args: Any) -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(self._site().stream(self.node, verb, self.id, *args)) as pieces:
                async for piece in pieces:
                    yield piece
        except NodeLost as error:
            raise NodeLost(self.node, (self.id,), error.reason, is_cut=error.is_cut) from error


def _write_tar(spool: Any, source: str, name: str) -> None:
    with tarfile.open(fileobj=spool, mode="w") as tar:
        tar.add(os.path.realpath(source), arcname=name)
    spool.seek(0)


def _read_tar(spool: Any, target: str, *, into: bool) -> None:
    spool.seek(0)
    folder, name = (target, "") if into else os.path.split(target.rstrip("/"))
    with tarfile.open(fileobj=spool, mode="r:") as tar:
        members = tar.getmembers()
        first = members[0].name.split("/")[0] if members else ""
        for member in members:
            if name:
                member.name = name + member.name.removeprefix(first)
            if name and member.islnk():
                member.linkname = name + member.linkname.removeprefix(first)
        tar.extractall(folder or ".", members=members, filter="data")
