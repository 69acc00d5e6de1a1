"""What is said between callers, directory and nodes: frozen values, which any engine can carry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from vmfork.cluster.placement import Constraints, Offer, Wanted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from vmfork.store import Manifest


# Why a node that is there takes no machine: its process is gone, or on its way back.
SILENT = "it does not answer"
# What to do where a machine is not there.
LISTED = "Cluster.status() tells those that live, as does vmfork cluster ps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A template that a node has in force under `name`; of two of one name the one that was frozen later counts."""

    name: str
    created_at: str
    wanted: Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of the cluster, where it is, and by which `key` it was asked for.

    One that `lasts` outlives its node's process, and its maker.
    """

    id: str
    node: str
    template: str
    key: str = ""
    lasts: bool = False
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a node says of itself, and which vmfork it runs. `asked` are keys of machines that are being made there.

    `ended` are those of machines that have ended, or could not be made, in the last seconds: whoever waits to hear of
    them hears that they were there. `counts` is what it did since its process began, by name.
    """

    offer: Offer
    version: str = ""
    held: tuple[Held, ...] = ()
    machines: tuple[Machine, ...] = ()
    asked: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Where shall a machine of the template be? Nodes of `avoid` have refused it. One `key` is one machine.

    One that `is_shared` others may ask for as well.
    """

    template: str
    key: str
    constraints: Constraints = field(default_factory=Constraints)
    avoid: frozenset[str] = frozenset()
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """There. `sources` are nodes that have the template, for one that has it not: then it `is_brought` there.

    The template is the one that was frozen at `created_at`.
    """

    node: str
    digest: str
    created_at: str = ""
    sources: tuple[str, ...] = ()
    is_brought: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A node is to make a machine. `client` is who must live for one that does not last.

    `ticket` names who asks: several may ask for the machine of one key. `options` are those of `Template.fork`. The
    template is that of the digest, frozen at `created_at`, or a later one that the node has.
    """

    template: str
    digest: str
    created_at: str = ""
    key: str
    client: str
    ticket: str = ""
    sources: tuple[str, ...] = ()
    lasts: bool = False
    wait_s: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


class Peers(Protocol):
    """Whom the directory, or a node, can ask. Raises `NodeLost` for a node that has ended, within seconds."""

    async def list_nodes(self) -> Sequence[str]: ...

    async def call(self, node: str, verb: str, *args: Any) -> Any: ...


class Site(Peers, Protocol):
    """What an engine does for a caller: it carries calls to the directory, and straight to nodes."""

    @property
    def client(self) -> str:
        """Names the program that we belong to; machines that do not last end with it."""
        ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Nodes that are known by name alone and cannot be asked, and why."""
        ...

    async def ask(self, verb: str, *args: Any) -> Any: ...

    def stream(self, node: str, verb: str, *args: Any) -> AsyncGenerator[Any, None]: ...

    async def aclose(self) -> None: ...


def find_version() -> str:
    """The version of the vmfork that this process runs; empty where it was not installed."""
    try:
        return version("vmfork")
    except PackageNotFoundError:
        return ""


def digest_of(m: Manifest) -> str:
    """Names what was frozen, wherever it is: its RAM, the state of its devices, its own disk, and what it fits."""
    disk = f" {m.disk_sha256}" if m.disk_sha256 else ""
    return hashlib.sha256(f"{m.memory_sha256} {m.state_sha256} {m.fingerprint}{disk}".encode()).hexdigest()
