"""What is known of one machine. It goes with the machine: its owner has it, and the handle, and the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.adopt.card import Card
from vmfork.adopt.identity import Identity
from vmfork.config.isolation import BY_DEFAULT, IsolationPolicy
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import NOT_ISOLATED, Hardware, Isolation
from vmfork.machine.origin import Origin, origin_of


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """How a machine was made, as far as another of its kind needs to know.

    `traits` are what a template of it is compared by. `qemu_path` and `qemu_stamp` name the emulator's very file.
    `agent_protocol` is 0, and what else is said of the agent empty, until that of a machine that boots has said it; its
    capabilities are missing too from what an older vmfork recorded. `policy`: what was asked of its isolation.
    """

    traits: Mapping[str, str]
    qemu_path: str
    qemu_stamp: str
    agent_protocol: int = 0
    agent_version: str = ""
    agent_capabilities: tuple[str, ...] = ()
    policy: IsolationPolicy = BY_DEFAULT

    @property
    def keeps_programs(self) -> bool:
        """Whether its agent can keep programs for another client (LEFT, docs/reference/wire.md)."""
        return "left" in self.agent_capabilities

    @property
    def answers_programs(self) -> bool:
        """Whether programs of the guest can ask the host (SERVE)."""
        return "asks" in self.agent_capabilities


# Of longer lines the beginning is forgotten: a search that forks what it forked may go on for days.
_MOST_KNOWN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """What a machine comes from, the first first and 64 of each at most, whether that still exists or not.

    `vms`: the ids of the VMs that were forked while they ran, its parent last. `templates`: `NAME/GENERATION` of the
    templates, its own last; each but the first was frozen from a fork of the one before.
    """

    vms: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def parent(self) -> str:
        """The id of the VM that it is a live fork of; empty for any other."""
        return self.vms[-1] if self.vms else ""

    def below_vm(self, vm_id: str) -> Descent:
        """That of a live fork of the machine `vm_id`, whose own this is."""
        return replace(self, vms=(*self.vms, vm_id)[-_MOST_KNOWN:])

    @classmethod
    def below_template(cls, name: str, generation: str, ancestors: Sequence[str]) -> Descent:
        """That of a fork of the template, which has those `ancestors`."""
        return cls(templates=(*ancestors, f"{name}/{generation}")[-_MOST_KNOWN:])


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The facts about one machine. One more of them is one more field here, with a default for older records.

    `image`: what it was booted from, or its template was. `ram_inode`: of the file its RAM is in, or is read from; 0
    where there is none. `upper_inode`: of the file that lies over that. `layer_bytes`: what the last of these holds,
    where a running machine was copied into it. `created_at` in UTC (ISO 8601). `origin` is told by a factory that gave
    it. `isolation`: how far its hypervisor is kept from the host. `name`, of which there is one among the living, and
    `labels` are its starter's; empty where it gave none. `idle_ttl_s`: it ends
    when nobody was its client for so long. `make` is missing from what an older vmfork recorded. `card`: its network
    card, where it has one. `outlet`: the passt that it leads out by.
    """

    identity: Identity
    hardware: Hardware
    image: str
    ram_inode: int = 0
    upper_inode: int = 0
    layer_bytes: int = 0
    created_at: str = field(default_factory=_now)
    origin: Origin | None = None
    isolation: Isolation = NOT_ISOLATED
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    idle_ttl_s: float = 0.0
    descent: Descent = Descent()
    make: Make | None = None
    card: Card | None = None
    outlet: ProcessIdentity | None = None


class Described:
    """The facts about a machine that people ask for by name. Its subclasses have `facts`."""

    __slots__ = ()

    if TYPE_CHECKING:  # at run time a property would be taken for the default of a dataclass's field

        @property
        def facts(self) -> MachineFacts: ...

    @property
    def id(self) -> str:
        """12 hex digits; no other VM has or had them."""
        return self.facts.identity.vm_id

    @property
    def name(self) -> str:
        """What it was named by whoever started it; empty where it has no name."""
        return self.facts.name

    @property
    def labels(self) -> Mapping[str, str]:
        """What it was labelled with by whoever started it."""
        return self.facts.labels

    @property
    def card(self) -> Card | None:
        """Its network card: what it leads to and its addresses; `None` where it has none."""
        return self.facts.card

    @property
    def template(self) -> str:
        """The template this VM is a fork of; empty for a booted one."""
        return self.facts.identity.template

    @property
    def parent(self) -> str:
        """The id of the VM this VM is a live fork of; empty for any other."""
        return self.facts.descent.parent

    @property
    def generation(self) -> str:
        """The generation id the guest was given, 32 hex digits."""
        return self.facts.identity.generation.hex

    @property
    def hostname(self) -> str:
        """The guest's host name, its own among all forks."""
        return self.facts.identity.hostname

    @property
    def machine_id(self) -> str:
        """What the guest has in /etc/machine-id, its own among all forks."""
        return self.facts.identity.machine_id

    @property
    def image(self) -> str:
        """The image it was booted from, or its template was."""
        return self.facts.image

    @property
    def hardware(self) -> Hardware:
        """What the guest sees: machine type, accelerator, CPUs, memory."""
        return self.facts.hardware

    @property
    def accel(self) -> str:
        """`kvm` or `tcg`, as decided."""
        return self.facts.hardware.accel

    @property
    def isolation(self) -> Isolation:
        """How far its hypervisor is kept from the host: `level`, the `parts` that apply, and what is `missing`."""
        return self.facts.isolation

    @property
    def source(self) -> Origin:
        """Where it came from (a template, a pool, a server, or a boot), and why from there."""
        return self.facts.origin or origin_of(self.template)
