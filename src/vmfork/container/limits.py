"""How much an image may be, so that a small hostile one does not fill memory or a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfork.errors import ArtifactError
from vmfork.units import format_bytes

GIB = 1 << 30
_MORE = "where it is to be trusted allow more: --max-size, max_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLimits:
    """The most that an image may have, over all its layers.

    `unpacked_bytes` are what its layers unpack to, tars with all that is in them. `entries` are members of tars.
    `described_bytes` are names, targets of links and attributes, which are held in memory. `path_bytes` is Linux's
    PATH_MAX without its end, `name_bytes` its NAME_MAX.
    """

    unpacked_bytes: int = 8 * GIB
    entries: int = 500_000
    described_bytes: int = 256 << 20
    layers: int = 512
    path_bytes: int = 4095
    name_bytes: int = 255


@dataclass(slots=True)
class Budget:
    """What an image has used of its limits so far."""

    limits: ImportLimits = field(default_factory=ImportLimits)
    unpacked_bytes: int = 0
    entries: int = 0
    described_bytes: int = 0

    def take(self, source: str, *, unpacked: int = 0, entries: int = 0, described: int = 0) -> None:
        """That much more is used. Raises `ArtifactError` about `source`, by the name of the limit that it passes."""
        limits = self.limits
        self.unpacked_bytes += unpacked
        self.entries += entries
        self.described_bytes += described
        if self.unpacked_bytes > limits.unpacked_bytes:
            raise _passed(
                source, "unpacked_bytes", f"it unpacks to more than {format_bytes(limits.unpacked_bytes)}", _MORE
            )
        if self.entries > limits.entries:
            raise _passed(source, "entries", f"it has more than {limits.entries} files")
        if self.described_bytes > limits.described_bytes:
            size = format_bytes(limits.described_bytes)
            raise _passed(source, "described_bytes", f"its names, links and attributes take more than {size}")


def check_packed(size_bytes: int, source: str, limits: ImportLimits) -> None:
    """Raises `ArtifactError` for layers of which more than `limits` allows comes out, by their size as they are sent.

    gzip and zstd make nothing larger by as much as a 64th.
    """
    if size_bytes > limits.unpacked_bytes + (limits.unpacked_bytes >> 6):
        most = format_bytes(limits.unpacked_bytes)
        raise _passed(source, "unpacked_bytes", f"its layers have {format_bytes(size_bytes)}, of {most} at most", _MORE)


def _passed(source: str, limit: str, reason: str, hint: str = "no honest image has so many") -> ArtifactError:
    return ArtifactError(source, f"{reason} (limit {limit})", hint=hint)
