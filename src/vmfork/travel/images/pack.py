"""From an image to the layers of its artifact, and from those to its files."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError, ImageCorrupt
from vmfork.image import disk
from vmfork.image.record import ImageRecord
from vmfork.records import list_fields
from vmfork.travel.document import fetch_layer, make_layer
from vmfork.travel.images.artifact import FILE_TYPE, SPAN, ImageArtifact, SentFile, list_files
from vmfork.travel.lanes import in_order

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event

    from vmfork.image import DiskStore, Image
    from vmfork.travel.document import Blobs, Layer, Sink


def pack(
    image: Image, disks: DiskStore, sink: Sink, *, stop: Event, tell: Callable[[float], None]
) -> ImageArtifact | None:
    """The image's layers are in `sink`. `None` when `stop` was set before. `tell` is given the part that is done.

    Raises `ImageCorrupt` when a file is not what was built.
    """
    files: list[SentFile] = []
    done = 0
    with ExitStack() as opened:
        fds = {name: _open(image, disks, name, opened) for name, _, _ in list_files(image)}
        for name, size_bytes, sha256 in list_files(image):
            digest, layers, fd = hashlib.sha256(), [], fds[name]

            def make(position: int, fd: int = fd) -> tuple[bytes, Layer, bytes]:
                raw = os.pread(fd, SPAN, position)
                return raw, *make_layer(raw)

            for raw, layer, data in in_order(make, range(0, size_bytes, SPAN), stop=stop):
                digest.update(raw)
                layers.append(layer)
                sink.put(layer.describe(FILE_TYPE), data)
                done += len(raw)
                tell(done / image.size_bytes)
            if stop.is_set():
                return None
            if digest.hexdigest() != sha256:
                raise ImageCorrupt(image.name, f"{name} is not what was built")
            files.append(SentFile(name=name, size_bytes=size_bytes, sha256=sha256, layers=tuple(layers)))
    return ImageArtifact(name=image.name, record=ImageRecord(**list_fields(image, ImageRecord)), files=tuple(files))


def unpack(
    artifact: ImageArtifact, blobs: Blobs, folder: Path, *, source: str, stop: Event, tell: Callable[[float], None]
) -> bool:
    """`folder` holds the image's files, each compared with its digest. False when `stop` was set before.

    Raises `ArtifactError` when something differs.
    """
    done, total = 0, artifact.raw_bytes

    def fetch(layer: Layer) -> bytes:
        return fetch_layer(layer, FILE_TYPE, blobs, source)

    for file in artifact.files:
        digest = hashlib.sha256()
        with (folder / file.name).open("xb") as target:
            for raw in in_order(fetch, file.layers, stop=stop):
                digest.update(raw)
                target.write(raw)
                done += len(raw)
                tell(done / total)
        if stop.is_set():
            return False
        if digest.hexdigest() != file.sha256:
            raise ArtifactError(source, f"the layers of {file.name} together are not what was built")
    return True


def _open(image: Image, disks: DiskStore, name: str, opened: ExitStack) -> int:
    """A descriptor of the file: what is removed meanwhile is still sent whole."""
    if name == disk.NAME:
        fd = disks.open(image.disk_sha256, image=image.name)
    else:
        fd = os.open(image.kernel.with_name(name), os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd
