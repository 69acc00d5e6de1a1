"""A layout that is read: a folder, or a tar of one (OCI image specification 1.1, image-layout.md).

```
oci-layout              {"imageLayoutVersion": "1.0.0"}
index.json              which manifests it holds
blobs/sha256/HEX        each named by the digest of its content
```
Of a tar the headers are read first, so that what is in it is found whatever its order: one that was just written ends
with its index.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.errors import ArtifactError
from vmfork.host.compressed import find_undoing
from vmfork.host.folders import NO_FILE, open_file
from vmfork.host.tar_reading import making_sense
from vmfork.oci.descriptor import digest_of
from vmfork.oci.manifest import read_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from vmfork.oci.descriptor import Descriptor

INDEX = "index.json"
# What registries take as a manifest at most, and more than any index needs.
MOST_DOCUMENT = 4 << 20
_MOST_MEMBERS = 100_000
_CUT_OFF = "it was cut off, or is no OCI layout: it has no index.json"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tar has one of its files."""

    offset: int
    size: int


class Part:
    """`size` bytes of an open file, from `offset` on."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size

    def read(self, size: int, /) -> bytes:
        """As many, fewer at the end."""
        data = bytearray()
        want = min(size, self._end - self._at)
        while len(data) < want and (more := os.pread(self._fd, want - len(data), self._at)):
            data += more
            self._at += len(more)
        return bytes(data)


class Layout:
    """Owner of what is open of the layout at `path`. Content is compared with its digest when it is read."""

    def __init__(self, path: Path, opened: ExitStack, fd: int, places: Mapping[str, Place] | None) -> None:
        self.path = path
        self._opened = opened
        self._fd = fd
        self._places = places

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `ArtifactError` for a file that is no tar, and `OSError` where there is none."""
        with ExitStack() as on_failure:
            if path.is_dir():
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                on_failure.callback(os.close, fd)
                return cls(path, on_failure.pop_all(), fd, None)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            on_failure.callback(os.close, fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ArtifactError(str(path), "it is neither a file nor a folder")
            members = find_members(path, fd)
            return cls(path, on_failure.pop_all(), fd, members)

    def read_index(self) -> tuple[Descriptor, ...]:
        """The manifests that it holds. Raises `ArtifactError`."""
        try:
            return read_index(self._read(INDEX, MOST_DOCUMENT, missing=_CUT_OFF))
        except ValueError as error:
            raise ArtifactError(f"{self.path}: {INDEX}", str(error)) from error

    def read(self, descriptor: Descriptor) -> bytes:
        """The content, in memory. Raises `ArtifactError` when it is missing, or not what its digest says."""
        name = f"blobs/{descriptor.digest.replace(':', '/')}"
        data = self._read(name, descriptor.size_bytes, missing="it is missing")
        if len(data) != descriptor.size_bytes:
            raise ArtifactError(
                f"{self.path}: {name}", f"it has {len(data)} bytes, and should have {descriptor.size_bytes}"
            )
        if digest_of(data) != descriptor.digest:
            raise ArtifactError(f"{self.path}: {name}", "its content is not what its digest says")
        return data

    @contextmanager
    def streaming(self, descriptor: Descriptor) -> Iterator[Part]:
        """The content, piece by piece; whoever reads it compares it with its digest. Raises as `read`."""
        name = f"blobs/{descriptor.digest.replace(':', '/')}"
        with self._opening(name, "it is missing") as (fd, place):
            if place.size != descriptor.size_bytes:
                raise ArtifactError(
                    f"{self.path}: {name}", f"it has {place.size} bytes, and should have {descriptor.size_bytes}"
                )
            yield Part(fd, place.offset, place.size)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, name: str, limit: int, *, missing: str) -> bytes:
        """What the layout has under `name`. Raises `ArtifactError` when it is not there, or larger than `limit`."""
        with self._opening(name, missing) as (fd, place):
            return self._read_at(name, fd, place.offset, place.size, limit)

    @contextmanager
    def _opening(self, name: str, missing: str) -> Iterator[tuple[int, Place]]:
        """The open file that has it, and where."""
        try:
            if self._places is not None:
                fd, place, own = self._fd, self._places[name], False
            else:
                fd, own = open_file(self.path / name), True
                place = Place(0, os.fstat(fd).st_size)
        except (KeyError, FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactError(f"{self.path}: {name}", missing) from error
        except OSError as error:
            if error.errno in NO_FILE:
                raise ArtifactError(f"{self.path}: {name}", "it is not a regular file") from error
            raise
        try:
            yield fd, place
        finally:
            if own:
                os.close(fd)

    def _read_at(self, name: str, fd: int, offset: int, size: int, limit: int) -> bytes:
        if size > limit:
            raise ArtifactError(f"{self.path}: {name}", f"it has {size} bytes, and should have {limit} at most")
        data = os.pread(fd, size, offset)
        while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data += more
        return data


def find_members(path: Path, fd: int, *, with_links: bool = False) -> dict[str, Place]:
    """Where the tar has its files. One that ends before its end has fewer.

    `with_links`: a link to one of them is another name of it.
    """
    found: dict[str, Place] = {}
    links: dict[str, str] = {}
    try:
        # Not by its path: what is open is what was looked at.
        with making_sense(), os.fdopen(os.dup(fd), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for number, member in enumerate(tar):
                if number >= _MOST_MEMBERS:
                    raise ArtifactError(str(path), f"it has more than {_MOST_MEMBERS} members")
                name = member.name.removeprefix("./")
                if member.isreg() and not member.issparse():
                    found[name] = Place(member.offset_data, member.size)
                elif with_links and (member.issym() or member.islnk()):
                    above = posixpath.dirname(name) if member.issym() else ""
                    links[name] = posixpath.normpath(posixpath.join(above, member.linkname))
    except tarfile.TarError as error:
        if not found:
            raise _no_tar(path, fd) from error
    return {name: found[target] for name, target in links.items() if target in found} | found


def _no_tar(path: Path, fd: int) -> ArtifactError:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        program = find_undoing(file)
    if program:
        return ArtifactError(str(path), "it is compressed, as a whole", hint=f"undo that first: {program} {path}")
    return ArtifactError(
        str(path),
        "it is not a tar",
        hint="give a file that `vmfork template save`, `vmfork image save` or `docker save` wrote, or an OCI layout",
    )
