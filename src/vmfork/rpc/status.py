"""What a cache server tells of itself: a value on both sides of the wire, and what `factory status --json` prints."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from vmfork.errors import HostError
from vmfork.records import read_record, write_record

# Raised when a field changes its meaning. Fields that are added need no other version: see `records`.
VERSION = 1


class Phase(StrEnum):
    """Where a server is in its life.

    ```
    starting    the endpoint is its own and answers; takes wait for the pool       health: NOT_SERVING
    serving     a machine is ready, or was: takes are served                       health: SERVING
    degraded    no machine is held, the last start failed: takes are refused       health: NOT_SERVING
    draining    takes, waiting ones too, get Closed; held machines are ended       health: NOT_SERVING
    ```
    A degraded server serves again as soon as a start succeeds.
    """

    STARTING = "starting"
    SERVING = "serving"
    DEGRADED = "degraded"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStatus:
    """A machine, held or given. `age_s`: seconds since it was ready, or given. `client` names the taker, for people."""

    id: str
    pid: int
    cpus: int
    memory_mib: int
    age_s: float
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Figures of the pool. All are zero until it is open.

    `size` is how many it is to hold now, between `least` and `most` of them, as many as are taken.
    `given`: machines handed out; `hits` of them at once, `misses` after waiting. `waiting`: callers that wait now.
    `failed`: starts that failed, with `last_error` the last. `dropped`: machines that were not handed out, by reason.
    """

    size: int = 0
    least: int = 0
    most: int = 0
    ready: int = 0
    refilling: int = 0
    waiting: int = 0
    given: int = 0
    hits: int = 0
    misses: int = 0
    failed: int = 0
    last_error: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPool:
    """One of a server's pools, and the machines in it: forks of `template`, or booted. `kind` is as in `ServerStatus`.

    `is_stuck`: it holds no machine, and its last start failed; takes from it are refused.
    """

    name: str
    template: str
    cpus: int
    memory_mib: int
    kind: str
    is_stuck: bool = False
    pool: PoolStatus = PoolStatus()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A cache server at one moment.

    `on` says whether it serves. `state` is a `Phase`, or a newer server's own word. `traits`, `cpus` and `memory_mib`
    are those of its machines. `fingerprint` is the digest of the traits alone, as in a template's manifest; `kind` is
    that of traits and hardware together. `vms` are held, `live` were given and still run; the memory is that of both.
    `metrics` are the numbers that Prometheus reads, without their prefix.
    """

    on: bool
    pid: int
    version: str
    state: str
    started_at: str
    endpoint: str
    metrics_address: str = ""
    template: str = ""
    cpus: int
    memory_mib: int
    traits: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    kind: str = ""
    memory_private_bytes: int = 0
    memory_shared_bytes: int = 0
    pool: PoolStatus = PoolStatus()
    pools: tuple[NamedPool, ...] = ()
    vms: tuple[MachineStatus, ...] = ()
    live: tuple[MachineStatus, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return write_record(self)

    @classmethod
    def from_json(cls, data: bytes, *, version: int) -> Self:
        """The status in `data`. Raises `HostError` when it cannot be read, or its `version` is not known here."""
        if version != VERSION:
            raise _unreadable(f"it has version {version}, and this vmfork knows {VERSION}")
        try:
            return read_record(cls, data)
        except ValueError as error:
            raise _unreadable(str(error)) from error


def _unreadable(reason: str) -> HostError:
    return HostError(f"the VM cache server's status cannot be read: {reason}", hint="run the same vmfork on both sides")
