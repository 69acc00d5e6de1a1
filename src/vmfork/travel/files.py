"""A file as it travels: in pieces of one size, each a layer of its own."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError
from vmfork.travel.document import Layer, fetch_layer, make_layer, most_packed
from vmfork.travel.lanes import in_order
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event

    from vmfork.travel.document import Blobs, Sink

# So much of a file is in one layer: what several threads hold of it, and what is sent again when a line broke.
SPAN = 16 * MIB
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A file that is sent: `layers` are what it is, one behind the other."""

    name: str
    size_bytes: int
    sha256: str
    layers: tuple[Layer, ...]

    def check(self) -> None:
        """Raises `ValueError` when its layers cannot be those of a file of its size."""
        if _HEX.fullmatch(self.sha256) is None:
            raise ValueError(f"{self.sha256!r} is no digest of {self.name}")
        if any(not 0 < each.raw_bytes <= SPAN or each.size_bytes > most_packed(each.raw_bytes) for each in self.layers):
            raise ValueError(f"a layer of {self.name} is larger than any")
        if sum(each.raw_bytes for each in self.layers) != self.size_bytes:
            raise ValueError(f"the layers of {self.name} are not of its size")


def send_file(
    fd: int, name: str, sha256: str, sink: Sink, media_type: str, *, stop: Event, told: Callable[[int], None]
) -> SentFile | None:
    """The file open as `fd` is in `sink`. `None` when `stop` was set before. `told` is given bytes as they are done.

    Raises `ValueError` when its content is another than `sha256` says.
    """
    digest, layers = hashlib.sha256(), []
    size_bytes = os.fstat(fd).st_size

    def make(position: int) -> tuple[bytes, Layer, bytes]:
        raw = os.pread(fd, SPAN, position)
        return raw, *make_layer(raw)

    for raw, layer, data in in_order(make, range(0, size_bytes, SPAN), stop=stop):
        digest.update(raw)
        layers.append(layer)
        sink.put(layer.describe(media_type), data)
        told(len(raw))
    if stop.is_set():
        return None
    if digest.hexdigest() != sha256:
        raise ValueError(f"{name} is not what was built")
    return SentFile(name=name, size_bytes=size_bytes, sha256=sha256, layers=tuple(layers))


def fetch_file(
    file: SentFile,
    blobs: Blobs,
    path: Path,
    media_type: str,
    *,
    source: str,
    stop: Event,
    told: Callable[[int], None],
) -> bool:
    """The file is at `path`, where nothing was, and compared with its digest. False when `stop` was set before.

    Raises `ArtifactError`, in which `source` names what it is read from, when something differs.
    """
    digest = hashlib.sha256()

    def fetch(layer: Layer) -> bytes:
        return fetch_layer(layer, media_type, blobs, source)

    with path.open("xb") as target:
        for raw in in_order(fetch, file.layers, stop=stop):
            digest.update(raw)
            target.write(raw)
            told(len(raw))
    if stop.is_set():
        return False
    if digest.hexdigest() != file.sha256:
        raise ArtifactError(source, f"the layers of {file.name} together are not what was built")
    return True
