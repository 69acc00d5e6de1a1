"""A template that is being made: room for it first, and one atomic step at the end."""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING

from vmfork.errors import Closed, HostError
from vmfork.host import facts
from vmfork.host.folders import link_atomically, write_whole
from vmfork.host.namespace import is_private, mount_namespace
from vmfork.host.tmpfs import mount_tmpfs
from vmfork.owner import Owner
from vmfork.records import write_record
from vmfork.store.folder import CURRENT, lock_exclusively, remove_generation, remove_if_empty, sweep_generations
from vmfork.store.manifest import FILE_NAME
from vmfork.store.opened import COVERED, Covered
from vmfork.store.ram_file import create_ram_file
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.host.lock import FileLock
    from vmfork.store.manifest import Manifest

_log = logging.getLogger("vmfork")

# Device state is 60 to 80 KB; this much is kept free for it beside the RAM.
STATE_HEADROOM = 8 * MIB


class ShortOfMemory(HostError):
    """The host has too little memory for a template; less of anything else that is kept in memory helps."""


class Staging(Owner):
    """Owner of a generation that is being made. Closing it uncommitted leaves nothing."""

    def __init__(self, name: str, folder: Path, lock: FileLock, *, memory_bytes: int) -> None:
        self.name = name
        self.generation = secrets.token_hex(8)
        self._folder = folder
        self._path = folder / self.generation
        self._lock = lock
        self.memory_fd = -1
        self.memory_bytes = 0
        self._allot(memory_bytes)

    def enlarge(self, memory_bytes: int) -> None:
        """There is room for `memory_bytes` of RAM. What was written before is gone when there was less.

        Raises `ShortOfMemory`: ask again, or close it.
        """
        if memory_bytes > self.memory_bytes:
            if self.memory_fd >= 0:
                os.close(self.memory_fd)
                self.memory_fd = -1
            remove_generation(self._path)
            self._allot(memory_bytes)

    def _allot(self, memory_bytes: int) -> None:
        need = memory_bytes + STATE_HEADROOM
        _check_memory(need)
        self._path.mkdir(mode=0o700)
        try:
            covered = self._path / COVERED
            write_whole(covered, write_record(Covered(mount_namespace(), facts.boot_id())))
            if not mount_tmpfs(self._path, size_bytes=need):
                covered.unlink()
                _check_space(self._path, need)
            self.memory_fd = create_ram_file(self._path / "memory", size_bytes=memory_bytes)
            self.memory_bytes = memory_bytes
        except BaseException:
            remove_generation(self._path)
            raise

    @property
    def memory_path(self) -> Path:
        return self._path / "memory"

    @property
    def state_path(self) -> Path:
        return self._path / "state"

    async def commit(self, manifest: Manifest) -> None:
        """The generation is the one in force, the former is gone, and the lock is free.

        The manifest is written last and the link swapped under the exclusive lock: at every moment a fork finds the old
        template or the new one, whole.
        """
        if self._lock.closed:
            raise Closed(f"the staging of template {self.name!r}")
        write_whole(self._path / FILE_NAME, manifest.to_json())
        with await lock_exclusively(self._folder):
            link_atomically(self._folder / CURRENT, self.generation)
        if is_private(self._path):
            _log.warning(
                "note: template %r is seen in this mount namespace alone, and goes with its last process", self.name
            )
        await self.aclose()

    async def aclose(self) -> None:
        """The lock is free, and no generation is left but the one in force, if any."""
        if self._lock.closed:
            return
        with self._lock:
            if self.memory_fd >= 0:
                os.close(self.memory_fd)
            sweep_generations(self._folder)
            remove_if_empty(self._folder)


def _check_memory(need: int) -> None:
    """Raises `ShortOfMemory`, with the arithmetic, when `need` bytes of memory cannot be had.

    A guest may come to touch all its RAM, so all of it must be there, although the file is sparse at first.
    """
    available = facts.available_memory_bytes()
    if need > available:
        raise ShortOfMemory(
            f"not enough memory: the template needs {format_mib(need // MIB)}, "
            f"{format_mib(available // MIB)} can be had",
            hint="give the VM less memory, stop something else, or raise the memory limit of the container or service",
        )


def _check_space(folder: Path, need: int) -> None:
    free = facts.free_space_bytes(folder)
    if need > free:
        raise ShortOfMemory(
            f"not enough space: the template needs {format_mib(need // MIB)}, "
            f"{folder} has {format_mib(free // MIB)} free",
            hint="give the VM less memory, or set VMFORK_RUNTIME_DIR to a larger tmpfs",
        )
