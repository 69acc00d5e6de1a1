"""The runtime folder of one VM: who owns it, and what is left to clean when the owner died.

```
VMS/ID/            0700
    lock           flock: held by the owner while it lives, and by the machine's keeper
    vm.json        the record: what is known of the machine, its process, its owner
    handle.json    only while nobody owns it: what the next owner needs
    agent.sock qmp.sock keeper.sock qemu.log console.log      the machine's
VMS/.new-ID/       the same, not locked yet
```
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.host.folders import make_private, write_whole
from vmfork.host.lock import FileLock
from vmfork.host.process import ProcessIdentity
from vmfork.machine.facts import Described, MachineFacts
from vmfork.records import read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

_NEW = ".new-"
_RECORD = "vm.json"
_HANDLE = "handle.json"
# A folder that was not locked this long after it was made never will be.
_NEW_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VMRecord(Described):
    """What another process may know of a running VM.

    `process` is the hypervisor's. `owner_pid` is 0 while nobody owns the VM: it was detached and waits.
    """

    facts: MachineFacts
    process: ProcessIdentity
    owner_pid: int

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self.process.pid

    @property
    def cpus(self) -> int:
        """How many CPUs its guest has."""
        return self.facts.hardware.cpus

    @property
    def memory_mib(self) -> int:
        """How much memory its guest has, in MiB."""
        return self.facts.hardware.memory_mib

    @property
    def created_at(self) -> str:
        """When it was started, in UTC (ISO 8601)."""
        return self.facts.created_at


class VMFolder:
    """Owner of a VM's folder and of the lock that says so."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, vms: Path, vm_id: str) -> Self:
        """A private folder for `vm_id`, locked from its first moment under that name."""
        new = make_private(vms) / (_NEW + vm_id)
        new.mkdir(mode=0o700)
        try:
            lock = FileLock.try_acquire(new / "lock", holder=f"process {os.getpid()}")
            assert lock is not None  # nobody else knows the name
            new.rename(vms / vm_id)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return cls(vms / vm_id, lock)

    @classmethod
    def take(cls, path: Path, lock_fd: int) -> Self:
        """The folder of a VM that was taken over, with the lock that came with it."""
        return cls(path, FileLock(lock_fd, path / "lock"))

    @property
    def lock_fd(self) -> int:
        """The lock's descriptor, for a process that is to hold it as well."""
        return self._lock.fileno()

    def record(self, record: VMRecord) -> None:
        """The record is there for every process that may enter the folder."""
        write_whole(self.path / _RECORD, write_record(record))

    def write_handle(self, handle: bytes) -> None:
        """The handle is there: whoever may enter the folder can take the VM over with it."""
        write_whole(self.path / _HANDLE, handle)

    def remove_handle(self) -> None:
        (self.path / _HANDLE).unlink(missing_ok=True)

    def release(self) -> None:
        """The folder stays, for whoever takes the VM over."""
        self._lock.close()

    def close(self) -> None:
        """The folder is gone and the lock is free, unless it was released. Its machine must have ended before."""
        if not self._lock.closed:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()


def new_vm_id() -> str:
    """A fresh id: 12 hex digits."""
    return secrets.token_hex(6)


def find_record(folder: Path) -> VMRecord | None:
    """The record in a VM's folder, a newer vmfork's too; `None` when it was not written yet or is damaged."""
    try:
        return read_record(VMRecord, (folder / _RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def read_handle(folder: Path) -> bytes | None:
    """What the last owner of a VM left for the next, or `None`."""
    try:
        return (folder / _HANDLE).read_bytes()
    except OSError:
        return None


def list_records(vms: Path) -> list[VMRecord]:
    """Records of the VMs that are alive, oldest first."""
    records = [find_record(folder) for folder in _folders(vms)]
    return sorted((r for r in records if r is not None and r.process.is_alive()), key=lambda r: r.created_at)


def sweep_vms(vms: Path) -> list[str]:
    """VMs whose owner died are gone, process and folder; gives their ids."""
    swept = []
    for folder in _folders(vms):
        lock = None
        with suppress(FileNotFoundError):
            lock = FileLock.try_acquire(folder / "lock")
        if lock is None:
            continue
        with lock:
            record = find_record(folder)
            if record is not None:
                record.process.kill()
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder.name)
    return swept


def _folders(vms: Path) -> list[Path]:
    if not vms.is_dir():
        return []
    found = []
    for path in vms.iterdir():
        if path.name.startswith(_NEW):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _NEW_LIMIT_S:
                    shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            found.append(path)
    return found
