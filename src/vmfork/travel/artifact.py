"""What a template looks like on its way: a configuration, layers of RAM, device state (docs/reference/artifact.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, Self

from vmfork.config import VMConfig, check_name
from vmfork.errors import ArtifactError, ConfigError
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.layout import MOST_DOCUMENT
from vmfork.oci.manifest import Manifest as OCIManifest
from vmfork.records import VERSION, OtherVersion, read_record, write_record
from vmfork.store import Manifest  # noqa: TC001 - a record's types are looked up when it is read
from vmfork.store.ram_file import PAGE
from vmfork.store.staging import STATE_HEADROOM
from vmfork.travel.pages import largest
from vmfork.units import MIB

TYPE = "application/vnd.vmfork.template.v1"
CONFIG_TYPE = "application/vnd.vmfork.template.config.v1+json"
MEMORY_TYPE = "application/vnd.vmfork.template.memory.v1+zstd"
STATE_TYPE = "application/vnd.vmfork.template.state.v1+zstd"
_ANY_TYPE = re.compile(r"application/vnd\.vmfork\.template\.v(\d+)")

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


class Blobs(Protocol):
    """Where content is read from by its digest. Raises `ArtifactError` when it is missing or other."""

    def read(self, descriptor: Descriptor, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer, and how many bytes it has when it is not compressed."""

    digest: str
    size_bytes: int
    raw_bytes: int

    def describe(self, media_type: str) -> Descriptor:
        return Descriptor(media_type=media_type, digest=self.digest, size_bytes=self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The configuration of an artifact: all that has to be known before its layers are read.

    `manifest` is the template's, as it was where that was frozen. `memory` are layers of RAM, each lying over those
    before it; `state` is that of the devices. `tsc_khz`: the guest keeps time by a processor that counts so fast; 0
    where it has another clock.
    """

    manifest: Manifest
    memory: tuple[Layer, ...]
    state: Layer
    tsc_khz: int = 0
    format: int = field(default=1, metadata=VERSION)

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return (*(each.describe(MEMORY_TYPE) for each in self.memory), self.state.describe(STATE_TYPE))

    @property
    def size_bytes(self) -> int:
        """Of all its layers as they travel, each counted once."""
        return sum({each.digest: each.size_bytes for each in self.layers}.values())

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

    @classmethod
    def read(cls, found: OCIManifest, blobs: Blobs, *, of: str) -> Self:
        """What `found` is the manifest of, checked in itself. `of` names it in errors, which are `ArtifactError`."""
        _check_kind(found.kind, of)
        if found.config.size_bytes > MOST_DOCUMENT:
            raise ArtifactError(of, f"its configuration has {found.config.size_bytes} bytes, more than any")
        data = blobs.read(found.config)
        try:
            artifact = read_record(cls, data)
        except OtherVersion as error:
            reason = f"its {error.field} is {error.have!r}, and this vmfork reads {error.want!r}"
            raise _made_by_another(of, reason) from error
        except ValueError as error:
            raise ArtifactError(of, f"its configuration makes no sense: {error}") from error
        try:
            artifact.check(found.layers)
        except (ValueError, ConfigError) as error:
            raise ArtifactError(of, str(error)) from error
        return artifact

    def check(self, layers: Sequence[Descriptor]) -> None:
        """Raises `ValueError` or `ConfigError` when it is none that we make: see `_check_machine`.

        Its layers must be `layers`, in their order, and none larger than the RAM that it may describe.
        """
        names = [(each.media_type, each.digest, each.size_bytes) for each in layers]
        if names != [(each.media_type, each.digest, each.size_bytes) for each in self.layers]:
            raise ValueError("its configuration names other layers, or in another order")
        m = self.manifest
        most = largest(span_of(m.memory_bytes))
        for each in self.memory:
            if not 0 < each.raw_bytes <= most or each.size_bytes > _most_packed(each.raw_bytes):
                raise ValueError(f"layer {each.digest} is larger than any of its RAM")
        if sum(each.raw_bytes for each in self.memory) > _MOST_DEPTH * largest(m.memory_bytes):
            raise ValueError("its layers have many times the RAM that they are of")
        if m.state_bytes != self.state.raw_bytes or not 0 < m.state_bytes <= STATE_HEADROOM:
            raise ValueError(f"its device state has {m.state_bytes} bytes")
        if self.state.size_bytes > _most_packed(m.state_bytes):
            raise ValueError(f"layer {self.state.digest} is larger than the device state")
        _check_machine(m)

    def can_carry(self, other: Manifest) -> bool:
        """Whether `other` can be told by what differs from this one, in layers that lie over these."""
        depth = sum(each.raw_bytes for each in self.memory) + largest(other.memory_bytes)
        return self.manifest.memory_bytes == other.memory_bytes and depth <= _MOST_DEPTH * largest(other.memory_bytes)


def span_of(memory_bytes: int) -> int:
    """How much of the RAM one layer is of, in bytes."""
    span = _SPAN
    while span * _MOST_SPANS < memory_bytes:
        span *= 2
    return span


def list_spans(memory_bytes: int) -> list[tuple[int, int]]:
    """Begin and end of the part of RAM that each layer is of."""
    return [*pairwise([*range(0, memory_bytes, span_of(memory_bytes)), memory_bytes])]


def _most_packed(raw_bytes: int) -> int:
    """zstd makes nothing larger than this (ZSTD_compressBound, zstd.h)."""
    return raw_bytes + raw_bytes // 128 + 1024


def _check_kind(kind: str, of: str) -> None:
    if kind == TYPE:
        return
    if match := _ANY_TYPE.fullmatch(kind):
        raise _made_by_another(of, f"it is a template of format {match[1]}, and this vmfork reads format 1")
    raise ArtifactError(of, f"it is {kind}, and no template", hint="templates are what `vmfork template save` makes")


def _made_by_another(of: str, reason: str) -> ArtifactError:
    return ArtifactError(of, reason, hint="read it with the vmfork that made it, or save it with this one")


def _check_machine(m: Manifest) -> None:
    """Raises `ValueError` or `ConfigError` for a machine that no configuration gives.

    QEMU is started for what the manifest says, and a fork asks no configuration.
    """
    check_name(m.name)
    check_name(m.image, field="image")
    VMConfig(cpus=m.cpus, memory_mib=m.memory_mib, max_cpus=m.max_cpus)
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
