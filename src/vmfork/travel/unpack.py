"""From the layers of an artifact to RAM and device state in files."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError
from vmfork.store.ram_file import RAMDigest, digest_open_ram
from vmfork.travel.artifact import MEMORY_TYPE, STATE_TYPE
from vmfork.travel.document import fetch_layer
from vmfork.travel.lanes import in_order
from vmfork.travel.pages import decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from vmfork.travel.artifact import Artifact
    from vmfork.travel.document import Blobs, Layer


def unpack(
    artifact: Artifact, blobs: Blobs, *, memory_fd: int, of: str, stop: Event, tell: Callable[[float], None]
) -> tuple[RAMDigest, bytes] | None:
    """The file `memory_fd`, which was empty, holds the RAM; gives what was found of that, and the device state.

    `None` when `stop` was set before. Each layer is compared with its digest before it is looked at, and the whole with
    what was frozen. Raises `ArtifactError`, of which `of` is the source, when something differs.
    """
    m, done, total = artifact.manifest, 0, sum(each.raw_bytes for each in artifact.memory)

    def fetch(layer: Layer) -> bytes:
        return fetch_layer(layer, MEMORY_TYPE, blobs, of)

    for layer, raw in zip(artifact.memory, in_order(fetch, artifact.memory, stop=stop), strict=False):
        _write(memory_fd, raw, m.memory_bytes, f"{of}: layer {layer.digest}")
        done += layer.raw_bytes
        tell(done / total)
    if stop.is_set():
        return None
    state = fetch_layer(artifact.state, STATE_TYPE, blobs, of)
    if hashlib.sha256(state).hexdigest() != m.state_sha256:
        raise ArtifactError(of, "its device state is not what was frozen")
    found = digest_open_ram(memory_fd)
    if found.sha256 != m.memory_sha256:
        raise ArtifactError(of, "its layers together are not the RAM that was frozen")
    return found, state


def _write(fd: int, raw: bytes, memory_bytes: int, of: str) -> None:
    try:
        for position, content in decode(raw, memory_bytes):
            write_at(fd, bytes(content) if isinstance(content, int) else content, position)
    except ValueError as error:
        raise ArtifactError(of, str(error)) from error


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = memoryview(data)[written:], position + written
