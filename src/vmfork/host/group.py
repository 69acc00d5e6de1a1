"""Control groups of one machine's own: what its emulator may use of this host."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.delegation import PREFIX, V2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfork.host.delegation import Parent

_PERIOD_US = 100_000
# cpu.weight goes from 1 to 10000 and is 100 by default; cpu.shares is 1024 then, and 2 at the least.
_SHARES_OF_WEIGHT = 1024 / 100
# A kernel without bandwidth control, or a group above of version 1 that has less: it limits more than this.
_UNNEEDED = frozenset(
    {("cpu.max", errno.ENOENT), ("cpu.cfs_quota_us", errno.ENOENT), ("cpu.cfs_quota_us", errno.EINVAL)}
)
# The kernel takes the last thread of a process from its group a moment after its end was told.
_EMPTY_LIMIT_S, _LOOK_EVERY_S = 2.0, 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """The most that a machine may have: memory, the time of so many CPUs, processes and threads.

    `cpu_weight` is its share beside others when the CPUs are busy, 1 to 10000; 100 is everybody's.
    """

    memory_bytes: int
    cpus: int
    cpu_weight: int
    tasks: int


def make_groups(parents: tuple[Parent, ...], name: str, allotment: Allotment) -> None:
    """A limited group is below each of `parents`, where `locate_groups` says.

    Raises `HostError`; those that were made are left then, for whoever was told of them before.
    """
    for parent, folder in zip(parents, locate_groups(parents, name), strict=True):
        try:
            os.mkdir(folder)
            for file, value in _values(parent, allotment).items():
                _write(folder, file, value)
        except OSError as error:
            raise HostError(
                f"cannot limit a machine by the control group {folder}: {error.strerror}",
                hint='see what took the right away, or set control_groups = "off" in [vm]',
            ) from error


def locate_groups(parents: tuple[Parent, ...], name: str) -> tuple[str, ...]:
    """The folders of the groups that `make_groups` makes."""
    return tuple(f"{parent.folder}/{PREFIX}{name}" for parent in parents)


def remove_groups(folders: Iterable[str], *, patient: bool = True) -> None:
    """The groups are gone. Raises `OSError` for one in use.

    Where `patient`, processes on their way out are waited for, two seconds at most.
    """
    end = time.monotonic() + _EMPTY_LIMIT_S * patient
    for folder in folders:
        while not _is_gone(folder, wait=time.monotonic() < end):
            time.sleep(_LOOK_EVERY_S)


def is_group_of(folder: str, name: str) -> bool:
    """Whether a group of that path was made under `name`."""
    return os.path.isabs(folder) and os.path.basename(folder) == f"{PREFIX}{name}"


def _is_gone(folder: str, *, wait: bool) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if not wait or error.errno != errno.EBUSY:
            raise
        return False
    return True


def _values(parent: Parent, allotment: Allotment) -> dict[str, str]:
    memory, tasks = str(allotment.memory_bytes), str(allotment.tasks)
    quota_us = allotment.cpus * _PERIOD_US
    if parent.kind == V2:
        values = {
            "memory": {"memory.max": memory},
            "cpu": {"cpu.weight": str(allotment.cpu_weight), "cpu.max": f"{quota_us} {_PERIOD_US}"},
            "pids": {"pids.max": tasks},
        }
    else:
        shares = max(2, round(allotment.cpu_weight * _SHARES_OF_WEIGHT))
        values = {
            "memory": {"memory.limit_in_bytes": memory},
            "cpu": {"cpu.shares": str(shares), "cpu.cfs_quota_us": str(quota_us)},
            "pids": {"pids.max": tasks},
        }
    return {file: value for controller in parent.controllers for file, value in values[controller].items()}


def _write(folder: str, file: str, value: str) -> None:
    try:
        fd = os.open(f"{folder}/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        if (file, error.errno) not in _UNNEEDED:
            raise
