"""From the layers of an artifact to RAM and device state in files."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from vmfork.errors import ArtifactError
from vmfork.host.zstd import decompress_in_pieces
from vmfork.store.ram_file import RAMDigest, RAMDigesting
from vmfork.travel.artifact import MEMORY_TYPE, STATE_TYPE, list_spans
from vmfork.travel.document import fetch_layer
from vmfork.travel.lanes import in_order
from vmfork.travel.pages import decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
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
        return blobs.read(layer.describe(MEMORY_TYPE))

    # Where there are more layers than parts of RAM, some lie over others.
    with WrittenDigest(memory_fd, at_once=len(artifact.memory) <= len(list_spans(m.memory_bytes))) as digest:
        for layer, data in zip(artifact.memory, in_order(fetch, artifact.memory, stop=stop), strict=False):
            digest.note(*_write(memory_fd, layer, data, m.memory_bytes, of))
            done += layer.raw_bytes
            tell(done / total)
        if stop.is_set():
            return None
        state = fetch_layer(artifact.state, STATE_TYPE, blobs, of)
        if hashlib.sha256(state).hexdigest() != m.state_sha256:
            raise ArtifactError(of, "its device state is not what was frozen")
        found = digest.finish()
    if found.sha256 != m.memory_sha256:
        raise ArtifactError(of, "its layers together are not the RAM that was frozen")
    return found, state


class WrittenDigest:
    """The digest of the RAM that is written to `fd`: `at_once`, behind whoever writes, or at the end."""

    def __init__(self, fd: int, *, at_once: bool) -> None:
        self._fd = fd
        self._at_once = at_once
        self._going = RAMDigesting(fd)
        self._written = 0
        self._steps: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vmfork-digest")

    def note(self, begin: int, end: int) -> None:
        """Pages between these were written, and the next are behind them."""
        if begin < self._written:  # they lie over others, of which the digest may be made
            self._at_once = False
        self._written = max(self._written, end)
        if self._at_once:
            self._steps.append(self._pool.submit(self._going.go_on, self._written))

    def finish(self) -> RAMDigest:
        """The digest of all that is there; nobody writes any more."""
        for each in self._steps:
            each.result()
        going = self._going if self._at_once else RAMDigesting(self._fd)
        going.go_on(sys.maxsize)
        return going.found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _write(fd: int, layer: Layer, data: bytes, memory_bytes: int, of: str) -> tuple[int, int]:
    """The layer lies over what the file had. Gives where it begins and ends."""
    begin, end = memory_bytes, 0
    try:
        for position, content in decode(decompress_in_pieces(data, layer.raw_bytes), memory_bytes):
            write_at(fd, content, position)
            begin, end = min(begin, position), position + len(content)
    except ValueError as error:
        raise ArtifactError(f"{of}: layer {layer.digest}", str(error)) from error
    return begin, end


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = memoryview(data)[written:], position + written
