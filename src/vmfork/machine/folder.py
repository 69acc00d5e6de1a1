"""The runtime folder of one VM: who owns it, and what is left to clean when the owner died.

```
VMS/ID/            0700
    lock           flock: held by the owner while it lives, and by the machine's keeper
    ticket.json    what of the host it was promised (admission/)
    groups.json    its control groups, from before they are made; they are removed before the folder is
    groups.stuck   there once one of them could not be removed: nobody waits for it again
    vm.json        the record: what is known of the machine, its process, its owner
    handle.json    only while nobody owns it: what the next owner needs
    broker.json    the same, while its broker owns it; without the token, which the broker is given when it is asked
    broker.sock    where clients connect, while its broker owns it
    paused         there while its guest stands still, because its owner or a client paused it
    ended.json     when and why its broker ended it
    replaced.json  which process was the machine before it went back to a checkpoint, or is on its way
    port-*.json    what leads into it (machine/ports.py)
    card           a link to nowhere that names its card's addresses, which no other has (machine/addresses.py)
    agent.sock qmp.sock keeper.sock qemu.log console.log      the machine's
VMS/.new-HEX/      the same, on its way to its name
VMS/.old-ID/       the same, on its way out
```
Whatever else lies in VMS is a stranger's, and left alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmfork.admission.charge import Charge, Ticket
from vmfork.config import Places, find_places
from vmfork.errors import StoreBusy, VMNotFound
from vmfork.host.broker import BROKER_SOCKET
from vmfork.host.folders import (
    ABSENT,
    NO_FILE,
    find_content,
    find_info,
    is_ours,
    is_private_folder,
    list_folder,
    list_ours,
    make_private,
    read_file,
    write_whole,
)
from vmfork.host.group import is_group_of, locate_groups, make_groups, remove_groups
from vmfork.host.lock import FileLock, is_locked
from vmfork.host.process import ProcessIdentity
from vmfork.machine import ended
from vmfork.machine.ended import End, bury
from vmfork.machine.facts import Described, MachineFacts
from vmfork.machine.kept import FOLDER as PROGRAMS
from vmfork.records import find_value, read_record, write_record

if TYPE_CHECKING:
    from vmfork.host.delegation import Parent
    from vmfork.host.group import Allotment

# The file that makes a folder ours.
LOCK = "lock"
_NEW, _OLD = ".new-", ".old-"
_ID = re.compile(r"[0-9a-f]{12}")
_ON_ITS_WAY = re.compile(r"\.(new|old)-[0-9a-f]{12}")
_RECORD = "vm.json"
_TICKET = "ticket.json"
_GROUPS = "groups.json"
_STUCK = "groups.stuck"
_HANDLE = "handle.json"
_BROKER = "broker.json"
_PAUSED = "paused"
_REPLACED = "replaced.json"
# flock(2) can be waited for only in a thread; its holder is about to end.
_CLAIM_RETRY_S = 0.02


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


@dataclass(frozen=True, slots=True)
class Groups:
    """The folders of the control groups of a VM."""

    folders: tuple[str, ...] = ()


class VMFolder:
    """Owner of a VM's folder and of the lock that says so."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, vms: Path, vm_id: str, ticket: Ticket | None = None) -> Self:
        """A private folder for `vm_id`, locked and with its ticket from its first moment under that name."""
        make_private(vms)
        with ExitStack() as on_failure:
            new, lock = _make_locked(vms)
            on_failure.callback(shutil.rmtree, new, ignore_errors=True)
            on_failure.enter_context(lock)
            if ticket is not None:
                (new / _TICKET).write_bytes(write_record(ticket))
            new.rename(vms / vm_id)
            on_failure.pop_all()
        return cls(vms / vm_id, lock)

    @classmethod
    def take(cls, path: Path, lock_fd: int) -> Self:
        """The folder of a VM that was taken over, with the lock that came with it."""
        return cls(path, FileLock(lock_fd, path / LOCK))

    @property
    def places(self) -> Places:
        """The instance that it belongs to: the runtime folder that it is in, and the home of this process."""
        return replace(find_places(), runtime=self.path.parent.parent)

    @property
    def lock_fd(self) -> int:
        """The lock's descriptor, for a process that is to hold it as well."""
        return self._lock.fileno()

    def record(self, record: VMRecord) -> None:
        """The record is there for every process that may enter the folder."""
        write_whole(self.path / _RECORD, write_record(record))

    def write_ticket(self, ticket: Ticket) -> None:
        """The machine is promised what `ticket` says."""
        write_whole(self.path / _TICKET, write_record(ticket))

    def make_groups(self, parents: tuple[Parent, ...], allotment: Allotment) -> tuple[str, ...]:
        """The machine has control groups below `parents`; their folders. They go with this one. Raises `HostError`."""
        folders = locate_groups(parents, self.path.name)
        if folders:
            write_whole(self.path / _GROUPS, write_record(Groups(folders)))
            make_groups(parents, self.path.name, allotment)
        return folders

    def write_handle(self, handle: bytes) -> None:
        """The handle is there: whoever may enter the folder can take the VM over with it."""
        write_whole(self.path / _HANDLE, handle)

    def write_brokered(self, handle: bytes) -> None:
        """The machine is a broker's: whoever may enter the folder can be its client."""
        write_whole(self.path / _BROKER, handle)

    def remove_handle(self) -> None:
        """Nobody but us can be the machine's owner or client."""
        for name in (_HANDLE, _BROKER, BROKER_SOCKET):
            (self.path / name).unlink(missing_ok=True)

    def note_paused(self, *, paused: bool) -> None:
        """Others see whether the guest stands still. Where the host refuses the file, they do not."""
        with suppress(OSError):
            if paused:
                (self.path / _PAUSED).touch(mode=0o600)
            else:
                (self.path / _PAUSED).unlink(missing_ok=True)

    def lend(self) -> LentFolder:
        """The same folder, for another machine to be started in it."""
        return LentFolder(self.path, self._lock)

    def clear(self) -> None:
        """Its machine has ended, and another may be started in it. Raises `OSError` when a control group is in use."""
        self.note_paused(paused=False)
        for socket in self.path.glob("*.sock"):
            socket.unlink(missing_ok=True)
        shutil.rmtree(self.path / PROGRAMS, ignore_errors=True)
        _remove_groups(self.path)

    def give_up(self, reason: str) -> None:
        """No machine was brought back: what is known of it is kept as of one that ended now, for this reason."""
        if self._lock.closed:
            return
        with suppress(OSError):
            ended.write_end(self.path, End(reason, time.time()))
        self._lock.close()
        sweep_vms(self.path.parent)

    def forget_end(self) -> None:
        """It is the folder of a machine that lives."""
        ended.forget_end(self.path)

    def release(self) -> None:
        """The folder stays, for whoever takes the VM over."""
        self._lock.close()

    def close(self) -> None:
        """The folder is gone and the lock is free, unless it was released. Its machine must have ended before.

        With a control group that a process of others is in, the folder stays for the sweeps.
        """
        if not self._lock.closed:
            with suppress(OSError):
                _remove_groups(self.path)
                _remove(self.path)
            self._lock.close()


class LentFolder(VMFolder):
    """The folder of a VM that comes back, for who tries to bring it back. Until `keep` it stays its lender's."""

    _is_kept = False

    def keep(self) -> None:
        """It is ours."""
        self._is_kept = True

    def close(self) -> None:
        """As that of any folder that is ours; of the lender's, nothing."""
        if self._is_kept:
            super().close()


class BorrowedFolder(VMFolder):
    """The folder of a VM that is not ours: it is read, and stays as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, record: VMRecord) -> None:
        """Nothing: the owner keeps the record."""

    def close(self) -> None:
        """Nothing: the owner removes it."""


def note_replaced(folder: Path, process: ProcessIdentity) -> None:
    """Whoever uses the machine that is this process is told, when it ends, that it went back to a checkpoint."""
    write_whole(folder / _REPLACED, write_record(process))


def was_replaced(folder: Path, process: ProcessIdentity) -> bool:
    """Whether the machine that was this process went back to a checkpoint, or is on its way, as far as can be seen."""
    with suppress(OSError):
        if find_value(ProcessIdentity, find_content(folder / _REPLACED)) == process:
            return True
        record = find_record(folder)
        return record is not None and record.process != process
    return False


async def claim_folder(vms: Path, vm_id: str, *, wait_s: float) -> VMFolder:
    """The folder of a VM that had a broker and has ended, or ends within `wait_s` seconds: it is ours, under its name.

    Raises `VMNotFound` when nothing is known of it, and `StoreBusy` when it lives, or another brings it back.
    """
    living, grave, end = vms / vm_id, vms.with_name(ended.FOLDER) / vm_id, time.monotonic() + wait_s
    while (found := _try_claim(living) or _try_claim(grave)) is None:
        if not (living.exists() or grave.exists()):
            raise VMNotFound(vm_id)
        if time.monotonic() >= end:
            raise StoreBusy(f"VM {vm_id}", "another process", hint="it may have been rolled back by that: look again")
        await asyncio.sleep(_CLAIM_RETRY_S)
    with ExitStack() as on_failure:
        on_failure.enter_context(found)
        if found.path.parent == grave:
            grave.rename(living)
        on_failure.pop_all()
    return VMFolder(living, found)


def _try_claim(folder: Path) -> FileLock | None:
    with suppress(FileNotFoundError):
        return FileLock.try_acquire(folder / LOCK, must_exist=True)
    return None


def new_vm_id() -> str:
    """A fresh id: 12 hex digits."""
    return secrets.token_hex(6)


def is_vm_id(text: str) -> bool:
    """Whether `text` can be the id of a VM."""
    return _ID.fullmatch(text) is not None


def find_record(folder: Path) -> VMRecord | None:
    """The record in a VM's folder, a newer vmfork's too; `None` when it was not written yet or is damaged.

    Raises `OSError` when that cannot be seen.
    """
    return find_value(VMRecord, find_content(folder / _RECORD))


def find_version(folder: str) -> tuple[int, ...]:
    """What differs whenever the record in a VM's folder was written anew. Raises `LookupError` where there is none."""
    try:
        return _version_of(os.stat(f"{folder}/{_RECORD}"))
    except OSError as error:
        raise LookupError(folder) from error


def find_ticket(folder: str | Path) -> Ticket | None:
    """The ticket in a VM's folder; `None` when there is none, or it is damaged.

    Raises `OSError` when that cannot be seen: others would be given what the machine was promised.
    """
    file = f"{folder}/{_TICKET}"
    try:
        return _read_ticket(file, _version_of(os.stat(file)))
    except ValueError:
        return None
    except OSError as error:
        if error.errno in ABSENT | NO_FILE:
            return None
        raise


def _version_of(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_mtime_ns, info.st_size


@lru_cache(maxsize=4096)
def _read_ticket(file: str, _version: tuple[int, ...]) -> Ticket:
    # Each fork looks at the tickets of all machines: a look at the file costs a tenth of reading it. Each writing is a
    # file of its own (`write_whole`); two of them within one tick of the clock have one time.
    return read_record(Ticket, read_file(Path(file)))


def list_charged(vms: Path) -> list[tuple[str, Charge]]:
    """The folders of all machines that were promised something, each with its charge."""
    try:
        folders = [f"{vms}/{name}" for name in os.listdir(vms) if _ID.fullmatch(name)]
    except FileNotFoundError:
        return []
    found = ((folder, find_ticket(folder)) for folder in folders)
    return [(folder, ticket.charge) for folder, ticket in found if ticket is not None]


def read_handle(folder: Path) -> bytes | None:
    """What the last owner of a VM left for the next, or `None`. Raises `OSError` when that cannot be seen."""
    return find_content(folder / _HANDLE)


def read_brokered(folder: Path) -> bytes | None:
    """What the starter of a VM left for its clients; `None` where it has no broker. Raises `OSError`."""
    return find_content(folder / _BROKER)


def has_broker(folder: Path) -> bool:
    """Whether the VM in `folder` stands alone, so that it has clients. Raises `OSError` when that cannot be seen."""
    return read_brokered(folder) is not None


def is_paused(folder: Path) -> bool:
    """Whether whoever paused the VM last has not let it run on. Told a moment too early where they were killed then."""
    return find_info(folder / _PAUSED) is not None


def list_records(vms: Path) -> list[VMRecord]:
    """Records of the VMs that are alive, oldest first. Raises `OSError` when one cannot be seen."""
    records = [find_record(folder) for folder in list_ours(vms, _ID, marker=LOCK)]
    return sorted((r for r in records if r is not None and r.process.is_alive()), key=lambda r: r.created_at)


def list_ending(vms: Path) -> list[VMRecord]:
    """Records of the VMs that have ended, and whose folders are there, as long as their keepers have them."""
    records = [find_record(folder) for folder in list_ours(vms, _ID, marker=LOCK)]
    return [record for record in records if record is not None and not record.process.is_alive()]


def folder_of(vms: Path, vm_id: str) -> Path:
    """The folder of a VM that lives, or of one that ended and had a broker."""
    living = vms / vm_id
    return living if living.exists() else vms.with_name(ended.FOLDER) / vm_id


def list_ended(vms: Path) -> list[tuple[VMRecord, End]]:
    """What is still known of VMs that had a broker and have ended, oldest end first."""
    found = [(find_record(folder), end) for folder, end in ended.list_ended(vms, name=_ID, marker=LOCK)]
    return [(record, end) for record, end in found if record is not None]


def forget_ended(vms: Path) -> None:
    """VMs that ended too long ago to be told of are forgotten (`machine/ended.py`)."""
    ended.forget_old(vms, name=_ID, marker=LOCK)


def find_waste(vms: Path) -> list[Path]:
    """Folders of VMs whose owner died, and of those that never came to be, as they are at this moment."""
    return [folder for folder in list_ours(vms, _ID, marker=LOCK) if not is_locked(folder / LOCK)] + _find_nameless(vms)


def find_strangers(vms: Path) -> list[Path]:
    """What lies beside the folders of VMs and is no such folder. Nothing of ours touches it."""
    return [path for path in list_folder(vms) if not _ON_ITS_WAY.fullmatch(path.name) and not _is_vm(path)]


def is_stuck(folder: Path) -> bool:
    """Whether the folder of a VM stays, because a process of others is in a control group of the VM."""
    return find_info(folder / _STUCK) is not None


def sweep_vms(vms: Path) -> list[str]:
    """VMs whose owner died are gone, process and folder; gives their ids. What is not ours was not touched.

    What is known of one that had a broker is kept for a while (`machine/ended.py`).
    One of which the host refused to tell the process stays for the next sweep: without its folder nobody would find it.
    So does one with a control group in use. The first sweep waits for that group, and no other does.
    """
    for folder in _find_nameless(vms):
        _remove_nameless(folder)
    swept = []
    for folder in list_ours(vms, _ID, marker=LOCK):
        lock = None
        with suppress(OSError):  # removed just now, by its owner or another sweep
            lock = FileLock.try_acquire(folder / LOCK, must_exist=True)
        if lock is None:
            continue
        with lock, suppress(OSError):
            record = find_record(folder)
            if record is not None:
                record.process.kill()
                if record.facts.outlet is not None:
                    record.facts.outlet.kill()
            _remove_groups(folder)
            if record is not None and has_broker(folder):
                bury(folder, name=_ID, marker=LOCK)
            else:
                _remove(folder)
            swept.append(folder.name)
    return swept


async def sweep_ended(folder: Path, *, wait_s: float = 10.0) -> None:
    """The folder of a VM whose process has ended is swept, once its keeper has ended too."""
    with suppress(OSError):  # swept by another
        lock = await FileLock.acquire(folder / LOCK, wait_s=wait_s)
        if lock is not None:
            lock.close()
    await asyncio.to_thread(sweep_vms, folder.parent)


def _is_vm(path: Path) -> bool:
    return _ID.fullmatch(path.name) is not None and is_ours(path, marker=LOCK)


def _make_locked(vms: Path) -> tuple[Path, FileLock]:
    """A folder that is new, and its lock. A sweep may take one that has no lock yet for what a killed process left."""
    while True:
        new = vms / (_NEW + new_vm_id())
        new.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            lock = FileLock.try_acquire(new / LOCK, holder=f"process {os.getpid()}")
            if lock is not None:
                return new, lock
            shutil.rmtree(new, ignore_errors=True)


def _find_nameless(vms: Path) -> list[Path]:
    """Folders whose maker was killed before they had their name, or whose remover after they had lost it."""
    found = [path for path in list_folder(vms) if _ON_ITS_WAY.fullmatch(path.name) and is_private_folder(path)]
    return [path for path in found if path.name.startswith(_OLD) or not is_locked(path / LOCK)]


def _remove_nameless(folder: Path) -> None:
    """The folder is gone, unless its maker is at work on it after all."""
    if folder.name.startswith(_OLD):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):  # it has a lock, as all have but those of a maker killed just then
        folder.rmdir()
        return
    with suppress(OSError):  # it has its name now
        lock = FileLock.try_acquire(folder / LOCK, must_exist=True)
        if lock is not None:
            with lock:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_groups(folder: Path) -> None:
    """The control groups that were made for the machine of `folder` are gone. Raises `OSError` when one is in use."""
    groups = find_value(Groups, find_content(folder / _GROUPS)) or Groups()
    own = [group for group in groups.folders if is_group_of(group, folder.name)]
    try:
        remove_groups(own, patient=not is_stuck(folder))
    except OSError:
        (folder / _STUCK).touch(mode=0o600)
        raise


def _remove(folder: Path) -> None:
    """The folder is gone. Killed meanwhile, this leaves one of which the name tells that it is to be removed."""
    doomed = folder.with_name(_OLD + folder.name)
    with suppress(OSError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
