"""What a template looks like on its way: a configuration, layers of RAM, device state (docs/reference/artifact.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from vmfork.config import VMConfig, check_name
from vmfork.machine.traits import DISK
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.manifest import Manifest as OCIManifest
from vmfork.records import reads_also, write_record
from vmfork.store import Manifest  # noqa: TC001 - a record's types are looked up when it is read
from vmfork.store.ram_file import PAGE
from vmfork.store.staging import STATE_HEADROOM
from vmfork.travel.document import Kind, Layer, check_layers, count_bytes, most_packed
from vmfork.travel.files import SentFile  # noqa: TC001
from vmfork.travel.pages import largest
from vmfork.units import MIB

TYPE = "application/vnd.vmfork.template.v1"
CONFIG_TYPE = "application/vnd.vmfork.template.config.v1+json"
MEMORY_TYPE = "application/vnd.vmfork.template.memory.v1+zstd"
STATE_TYPE = "application/vnd.vmfork.template.state.v1+zstd"
DISK_TYPE = "application/vnd.vmfork.template.disk.v1+zstd"
KIND = Kind("template", TYPE)
# 1 is of templates that need no file beside their RAM and state, and of those that stay on their host.
FORMAT, WITHOUT_DISKS = 2, 1

# A layer is of so much of the address space, whatever is in it, so that the same RAM gives the same layers; more where
# there were too many of them. What was measured is in docs/decisions/0054.
_SPAN = 16 * MIB
_MOST_SPANS = 512
# A layer's pages lie over those of the layers before it: so deep may what was built on one another be.
_MOST_DEPTH = 3
# No shell and no option of QEMU's reads it; still it is part of QEMU's command line.
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+-]*")

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The configuration of an artifact: all that has to be known before its layers are read.

    `manifest` is the template's, as it was where that was frozen. `memory` are layers of RAM, each lying over those
    before it; `state` is that of the devices. `disks` are the files that its machines read: what their root is on, and
    what was on a disk that they write to; none where it is for the host that has them. `tsc_khz`: the guest keeps time
    by a processor that counts so fast; 0 where it has another clock.
    """

    manifest: Manifest
    memory: tuple[Layer, ...]
    state: Layer
    disks: tuple[SentFile, ...] = ()
    tsc_khz: int = 0
    format: int = field(default=FORMAT, metadata=reads_also(WITHOUT_DISKS))

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return (
            *(each.describe(MEMORY_TYPE) for each in self.memory),
            self.state.describe(STATE_TYPE),
            *(each.describe(DISK_TYPE) for disk in self.disks for each in disk.layers),
        )

    @property
    def size_bytes(self) -> int:
        """Of all its layers as they travel, each counted once."""
        return count_bytes(self.layers)

    def to_documents(self) -> tuple[bytes, OCIManifest]:
        """Its configuration, and the manifest that names that and the layers."""
        data, m = write_record(self), self.manifest
        annotations = {
            "org.opencontainers.image.title": m.name,
            "org.opencontainers.image.created": m.created_at,
            **{f"io.vmfork.template.{key}": m.traits.get(key, "") for key in ("qemu.version", "machine", "accel")},
        }
        config = Descriptor.of(data, CONFIG_TYPE)
        return data, OCIManifest(config=config, layers=self.layers, artifact_type=TYPE, annotations=annotations)

    def check(self, layers: Sequence[Descriptor]) -> None:
        """Raises `ValueError` or `ConfigError` when it is none that we make: see `_check_machine`.

        Its layers must be `layers`, in their order, and none larger than the RAM that it may describe.
        """
        check_layers(self.layers, layers)
        m = self.manifest
        most = largest(span_of(m.memory_bytes))
        for each in self.memory:
            if not 0 < each.raw_bytes <= most or each.size_bytes > most_packed(each.raw_bytes):
                raise ValueError(f"layer {each.digest} is larger than any of its RAM")
        if sum(each.raw_bytes for each in self.memory) > _MOST_DEPTH * largest(m.memory_bytes):
            raise ValueError("its layers have many times the RAM that they are of")
        if m.state_bytes != self.state.raw_bytes or not 0 < m.state_bytes <= STATE_HEADROOM:
            raise ValueError(f"its device state has {m.state_bytes} bytes")
        if self.state.size_bytes > most_packed(m.state_bytes):
            raise ValueError(f"layer {self.state.digest} is larger than the device state")
        if self.disks and [(disk.name, disk.sha256) for disk in self.disks] != list_disks(m):
            raise ValueError("its disks are not those that its machines have")
        for disk in self.disks:
            disk.check()
        _check_machine(m)

    def can_carry(self, other: Manifest) -> bool:
        """Whether `other` can be told by what differs from this one, in layers that lie over these."""
        depth = sum(each.raw_bytes for each in self.memory) + largest(other.memory_bytes)
        return self.manifest.memory_bytes == other.memory_bytes and depth <= _MOST_DEPTH * largest(other.memory_bytes)


def list_disks(m: Manifest) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file beside RAM and state that its machines read, as it lies among the disks."""
    root = [("root", m.traits[DISK])] if DISK in m.traits else []
    return [*root, ("scratch", m.disk_sha256)] if m.disk_mib else root


def span_of(memory_bytes: int) -> int:
    """How much of the RAM one layer is of, in bytes."""
    span = _SPAN
    while span * _MOST_SPANS < memory_bytes:
        span *= 2
    return span


def list_spans(memory_bytes: int) -> list[tuple[int, int]]:
    """Begin and end of the part of RAM that each layer is of."""
    return [*pairwise([*range(0, memory_bytes, span_of(memory_bytes)), memory_bytes])]


def _check_machine(m: Manifest) -> None:
    """Raises `ValueError` or `ConfigError` for a machine that no configuration gives.

    QEMU is started for what the manifest says, and a fork asks no configuration.
    """
    check_name(m.name)
    check_name(m.image, field="image")
    VMConfig(cpus=m.cpus, memory_mib=m.memory_mib, max_cpus=m.max_cpus, disk_mib=m.disk_mib)
    if m.memory_bytes != m.memory_mib * MIB or m.memory_bytes % PAGE:
        raise ValueError(f"its RAM has {m.memory_bytes} bytes, and its machine {m.memory_mib} MiB")
    if m.max_memory_mib:
        VMConfig(memory_mib=m.memory_mib - sum(m.added_mib), max_memory_mib=m.max_memory_mib)
    if any(size <= 0 for size in m.added_mib) or sum(m.added_mib) >= m.memory_mib:
        raise ValueError(f"pieces of {m.added_mib} MiB cannot have been added to it")
    if m.traits.get("accel") not in ("kvm", "tcg"):
        raise ValueError(f"its accelerator is {m.traits.get('accel')!r}")
    if _CPU_MODEL.fullmatch(m.traits.get("cpu_model", "")) is None:
        raise ValueError(f"its CPU model is {m.traits.get('cpu_model')!r}")
    if "reseed" not in m.traits or "machine" not in m.traits:
        raise ValueError("its traits are not those of a machine")
