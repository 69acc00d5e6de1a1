"""The files of a guest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.wire.given import MOST_BYTES, check_content, check_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.agent.client import AgentClient
    from vmfork.wire.given import GuestPath
    from vmfork.wire.message import DirEntry, FileStat

_LIMIT_S = 60.0


@guarded
class GuestFiles(ABC):
    """What a machine does with the files of its guest. Paths are absolute."""

    @abstractmethod
    def _live_agent(self) -> AgentClient:
        """The line to the guest's agent. Raises `Closed`."""

    async def read_file(
        self, path: GuestPath, *, max_bytes: int | None = MOST_BYTES, timeout_s: float = _LIMIT_S
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
        timeout_s: float = _LIMIT_S,
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

    async def list_dir(
        self, path: GuestPath, *, max_bytes: int | None = MOST_BYTES, timeout_s: float | None = None
    ) -> Sequence[DirEntry]:
        """The entries of the guest's folder `path`. Without `timeout_s` there is no limit of time.

        Raises `LimitExceeded` when the list takes more than `max_bytes` (256 MiB by default: some millions of entries).
        """
        return await self._live_agent().list_dir(check_path(path), max_bytes=max_bytes, timeout_s=timeout_s)

    async def remove(self, path: GuestPath, *, recursive: bool = False, timeout_s: float | None = None) -> None:
        """Nothing is at the guest's `path`. A folder that is not empty needs `recursive`.

        Raises `GuestFileError` (`busy`) when something is mounted below it, which stays. Without `timeout_s` there is
        no limit; a removal that is given up leaves what it had not come to.
        """
        await self._live_agent().remove(check_path(path), recursive=recursive, timeout_s=timeout_s)

    async def make_dir(self, path: GuestPath, *, mode: int = 0o755, parents: bool = False) -> None:
        """The guest has a folder at `path`."""
        await self._live_agent().make_dir(check_path(path), mode=mode, parents=parents)
