"""From an image to the layers of its artifact, and from those to its files."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmfork.errors import ImageCorrupt
from vmfork.image import disk
from vmfork.image.record import ImageRecord
from vmfork.records import list_fields
from vmfork.travel.files import fetch_file, send_file
from vmfork.travel.images.artifact import FILE_TYPE, ImageArtifact, list_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event

    from vmfork.image import DiskStore, Image
    from vmfork.travel.document import Blobs, Sink
    from vmfork.travel.files import SentFile


def pack(
    image: Image, disks: DiskStore, sink: Sink, *, stop: Event, tell: Callable[[float], None]
) -> ImageArtifact | None:
    """The image's layers are in `sink`. `None` when `stop` was set before. `tell` is given the part that is done.

    Raises `ImageCorrupt` when a file is not what was built.
    """
    files: list[SentFile] = []
    done = 0

    def told(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        tell(done / image.size_bytes)

    with ExitStack() as opened:
        fds = {name: _open(image, disks, name, opened) for name, _, _ in list_files(image)}
        for name, _, sha256 in list_files(image):
            try:
                sent = send_file(fds[name], name, sha256, sink, FILE_TYPE, stop=stop, told=told)
            except ValueError as error:
                raise ImageCorrupt(image.name, str(error)) from error
            if sent is None:
                return None
            files.append(sent)
    return ImageArtifact(name=image.name, record=ImageRecord(**list_fields(image, ImageRecord)), files=tuple(files))


def unpack(
    artifact: ImageArtifact, blobs: Blobs, folder: Path, *, source: str, stop: Event, tell: Callable[[float], None]
) -> bool:
    """`folder` holds the image's files, each compared with its digest. False when `stop` was set before.

    Raises `ArtifactError` when something differs.
    """
    done, total = 0, artifact.raw_bytes

    def told(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        tell(done / total)

    return all(
        fetch_file(file, blobs, folder / file.name, FILE_TYPE, source=source, stop=stop, told=told)
        for file in artifact.files
    )


def _open(image: Image, disks: DiskStore, name: str, opened: ExitStack) -> int:
    """A descriptor of the file: what is removed meanwhile is still sent whole."""
    if name == disk.NAME:
        fd = disks.open(image.disk_sha256, image=image.name)
    else:
        fd = os.open(image.kernel.with_name(name), os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd
