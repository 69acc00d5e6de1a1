"""The files of a guest."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.api.limits import FILE_LIMIT_S
from vmfork.border import guarded
from vmfork.errors import ConfigError, GuestFileError
from vmfork.host.packing import Packing, base_name, check_source, measure
from vmfork.host.tar_packing import TarPacking
from vmfork.host.tar_unpacking import TarUnpacking
from vmfork.host.unpacking import Place, Unpacking
from vmfork.owner import gives_owner
from vmfork.progress import ignore_progress
from vmfork.wire.code import ErrorCode
from vmfork.wire.given import MOST_BYTES, MOST_COPIED, check_content, check_local, check_open, check_path, name_of
from vmfork.wire.pattern import Pattern
from vmfork.wire.tree import encode_link_alone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.agent.client import AgentClient
    from vmfork.agent.watch import Watch
    from vmfork.copied import Copied
    from vmfork.progress import ProgressListener
    from vmfork.wire.given import GuestPath, HostPath, OpenFile
    from vmfork.wire.message import DirEntry, FileStat


@guarded
class GuestFiles(ABC):
    """What a machine does with the files of its guest. Paths are absolute."""

    @abstractmethod
    def _live_agent(self) -> AgentClient:
        """The line to the guest's agent. Raises `Closed`."""

    async def read_file(
        self, path: GuestPath, *, max_bytes: int | None = MOST_BYTES, timeout_s: float = FILE_LIMIT_S
    ) -> bytes:
        """The content of the guest's file at the absolute `path`. Raises `GuestFileError` when it cannot be read.

        Raises `LimitExceeded`, with the first `max_bytes`, when it has more (256 MiB by default, `None`: no limit).
        """
        return await self._live_agent().read_file(check_path(path), max_bytes=max_bytes, timeout_s=timeout_s)

    async def write_file(
        self,
        path: GuestPath,
        data: bytes | str,
        *,
        mode: int | None = None,
        parents: bool = False,
        timeout_s: float = FILE_LIMIT_S,
    ) -> None:
        """The guest's file at the absolute `path` holds `data` (text as UTF-8), as after a shell's `>`.

        A regular file is replaced whole: nobody sees half of it, and `GuestFileError` leaves the old content. It keeps
        its owner, its attributes and, without `mode`, its mode; a new one has 0644. A link is followed. A pipe, a
        device, a file of the kernel's, one that is mounted or has several names, is written in place; a pipe waits for
        its reader. With `parents`, missing folders were made. When there is no room, the error says how much there is.
        """
        content = check_content(data, field="data")
        await self._live_agent().write_file(check_path(path), content, mode=mode, parents=parents, timeout_s=timeout_s)

    async def stat(self, path: GuestPath) -> FileStat:
        """What the guest's file system says of `path`; links are not followed."""
        return await self._live_agent().stat(check_path(path))

    async def exists(self, path: GuestPath) -> bool:
        """Whether there is something at the guest's `path`; a link counts, wherever it leads."""
        return await self._live_agent().exists(check_path(path))

    async def is_dir(self, path: GuestPath) -> bool:
        """Whether there is a folder at the guest's `path`, or a link to one."""
        return await self.exists(f"{check_path(path)}/.")

    async def list_dir(
        self,
        path: GuestPath,
        *,
        recursive: bool = False,
        glob: str | None = None,
        max_bytes: int | None = MOST_BYTES,
        timeout_s: float | None = None,
    ) -> Sequence[DirEntry]:
        """The entries of the guest's folder `path`. Without `timeout_s` there is no limit of time.

        With `recursive`, of all folders below it too, but for what is mounted there; their names are paths from `path`
        on. `glob` leaves those that fit: `*`, `?` and `[...]` stand for parts of a name, `**` for any folders; without
        a slash it is that of a name in whatever folder. Raises `ConfigError` for a `glob` that is none, and
        `LimitExceeded` when the list takes more than `max_bytes` of memory (256 MiB by default: some 800,000 names).
        """
        pattern = None if glob is None else Pattern(glob, field="glob")
        if pattern is not None and pattern.needs_tree and not recursive:
            raise ConfigError("glob", glob, f"{glob!r} looks into folders below", hint="give recursive=True")
        agent, where = self._live_agent(), check_path(path)
        ask = agent.list_tree if recursive else agent.list_dir
        entries = await ask(where, max_bytes=max_bytes, timeout_s=timeout_s)
        if pattern is None:
            return entries
        return await asyncio.to_thread(lambda: [entry for entry in entries if pattern.matches(entry.name)])

    async def remove(self, path: GuestPath, *, recursive: bool = False, timeout_s: float | None = None) -> None:
        """Nothing is at the guest's `path`. A folder that is not empty needs `recursive`.

        Raises `GuestFileError` (`busy`) when something is mounted below it, which stays. Without `timeout_s` there is
        no limit; a removal that is given up leaves what it had not come to.
        """
        await self._live_agent().remove(check_path(path), recursive=recursive, timeout_s=timeout_s)

    async def make_dir(self, path: GuestPath, *, mode: int = 0o755, parents: bool = False) -> None:
        """The guest has a folder at `path`."""
        await self._live_agent().make_dir(check_path(path), mode=mode, parents=parents)

    @gives_owner
    async def watch(self, path: GuestPath, *, recursive: bool = False, timeout_s: float = FILE_LIMIT_S) -> Watch:
        """What happens to the guest's file or folder `path` is told from now on, by `events` of what this gives.

        Of a folder that is what happens to the names in it; with `recursive`, in all below it too, but for what is
        mounted there. What was made in a new folder at the same time may be told twice. A link at `path` is followed.
        Raises `GuestFileError` when there is nothing, or (`busy`) when there are more than 8,192 folders below.
        `timeout_s` bounds the beginning.
        """
        return await self._live_agent().watch(check_path(path), recursive=recursive, timeout_s=timeout_s)

    async def move(self, path: GuestPath, to: GuestPath) -> None:
        """What was at the guest's `path` is at `to`, at once, in the place of a file or an empty folder there.

        Raises `GuestFileError` when `to` lies in another file system, or is a folder that is not empty.
        """
        await self._live_agent().move(check_path(path), check_path(to, field="to"))

    async def chmod(self, path: GuestPath, mode: int) -> None:
        """The guest's file or folder at `path` has that mode, such as 0o755. A link is followed."""
        await self._live_agent().change(check_path(path), mode=mode)

    async def chown(self, path: GuestPath, *, user: str = "", group: str = "") -> None:
        """The guest's file or folder at `path` is `user`'s, and `group`'s: names or numbers. A link is followed.

        What is not given stays. Raises `GuestFileError` (`no-user`) when the guest knows no such name.
        """
        if not (user or group):
            raise ConfigError("user", user, "neither a user nor a group is given", hint="give user=, group=, or both")
        await self._live_agent().change(check_path(path), user=user, group=group)

    async def put(
        self,
        local: HostPath,
        guest: GuestPath,
        *,
        parents: bool = False,
        archive: bool = False,
        follow_link: bool = True,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """The guest has a copy of the host's file or folder `local` at `guest`; of a file, in the folder there.

        Modes, times, links and holes are kept. Everything is root's and lends no rights; with `archive`, owners (their
        numbers) and set-user-ID are kept too. A folder that is there is added to, and keeps its mode and owner. What
        else has a name of the copy is replaced, at once and whole; a folder by a file, or a file by a folder, is a
        `GuestFileError`. With `parents`, missing folders were made. A link at `local` is followed, or, without
        `follow_link`, copied itself. Devices, pipes and sockets are `skipped`. After an error or a cancel, what had
        arrived stays: the error's `arrived` tells it.
        """
        source, path = check_local(local), check_path(guest, field="guest")
        if not follow_link and await asyncio.to_thread(os.path.islink, source):
            return await self._put_link(source, path, archive=archive, timeout_s=timeout_s)
        size = await asyncio.to_thread(check_source, source)
        total = size if progress is ignore_progress else await asyncio.to_thread(measure, source)
        return await self._live_agent().put(
            Packing(source),
            path,
            parents=parents,
            archive=archive,
            size=size,
            total=total,
            progress=progress,
            timeout_s=timeout_s,
        )

    async def _put_link(self, source: str, path: str, *, archive: bool, timeout_s: float | None) -> Copied:
        if await self.is_dir(path):
            folder, name = path, base_name(source)
        else:
            folder, name = os.path.split(path)
            await self._check_folder(folder)
        packing = Packing.of_link(source, name)
        copied = await self._live_agent().put(packing, folder, archive=archive, timeout_s=timeout_s)
        return replace(copied, folders=0)

    async def _check_folder(self, path: str) -> None:
        if not await self.is_dir(path):
            raise GuestFileError("copying to", path, ErrorCode.NOT_DIRECTORY, "there is no such folder")

    async def put_tar(
        self,
        tar: OpenFile,
        guest: GuestPath,
        *,
        archive: bool = False,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """What is in the tar that the open file `tar` gives is in the guest's folder `guest`, which was there.

        It is read from its descriptor, from where that stands to the end of the tar, and may be compressed. Otherwise
        as `put`: each file appears whole. Raises `ConfigError` for what is no tar, ends before its end, or has a name
        with `..`; what came before stays.
        """
        path = check_path(guest, field="guest")
        fd = check_open(tar, field="tar")
        await self._check_folder(path)
        return await self._live_agent().put(
            TarPacking(fd), path, archive=archive, progress=progress, timeout_s=timeout_s
        )

    async def get(
        self,
        guest: GuestPath,
        local: HostPath,
        *,
        parents: bool = False,
        archive: bool = False,
        follow_link: bool = True,
        outside_links: bool = False,
        max_bytes: int | None = MOST_COPIED,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """The host has a copy of the guest's file or folder `guest` at `local`; of a file, in the folder there.

        Otherwise as `put`. Everything is ours, and nothing has set-user-ID; with `archive`, owners (their numbers) are
        kept. Nothing that the guest sends leaves the copy: no link is followed here, and one that leads out of the copy
        is an error, unless `outside_links`, which keeps it as it is. What has the same name in a folder that is here is
        replaced, so do not copy into one whose files matter. Raises `LimitExceeded` when there is more than `max_bytes`
        (4 GiB by default, `None`: no limit); each name counts for 4,096 bytes beside its content. What is mounted below
        `guest` is `skipped`.
        """
        path = check_path(guest, field="guest")
        agent = self._live_agent()
        place = Place(
            path=check_local(local),
            name=name_of(path),
            operation=f"copying {path}",
            parents=parents,
            archive=archive,
            outside_links=outside_links,
            max_bytes=max_bytes,
        )
        if not follow_link and (told := await agent.stat(path)).type == "link":
            return await _make_link(place, told)
        return await agent.get(path, Unpacking(place), progress=progress, timeout_s=timeout_s)

    async def get_tar(
        self,
        guest: GuestPath,
        tar: OpenFile,
        *,
        archive: bool = False,
        outside_links: bool = False,
        max_bytes: int | None = MOST_COPIED,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """The open file `tar` was given a tar of the guest's file or folder `guest`, below its own name.

        Below `.` where `guest` ends with `/.`. It goes to the descriptor, and is not compressed; a hole is zeros.
        Otherwise as `get`. A tar that breaks off has no end, so that whatever reads it sees that.
        """
        path = check_path(guest, field="guest")
        fd = check_open(tar, field="tar")
        sink = TarUnpacking(
            fd,
            prefix="." if path.endswith("/.") else name_of(path),
            operation=f"copying {path}",
            archive=archive,
            outside_links=outside_links,
            max_bytes=max_bytes,
        )
        return await self._live_agent().get(path, sink, progress=progress, timeout_s=timeout_s)


async def _make_link(place: Place, told: FileStat) -> Copied:
    """The link that the guest tells of is at the place, or in the folder there."""
    place = await asyncio.to_thread(place.within_folder)
    with closing(Unpacking(place)) as sink:
        await sink.open()
        await sink.take(encode_link_alone(os.fsencode(place.name), told))
        return replace(sink.copied, folders=0)
