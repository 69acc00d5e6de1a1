"""One layer, a tar of what changed, is applied to a root (OCI image specification 1.1, layer.md).

```
NAME                 is added, or takes the place of what layers below have there
.wh.NAME             NAME of the layers below is gone
.wh..wh..opq         so is all that they have in this folder
.wh..wh.NAME         else: what a file system of old kept for itself; passed over
```
A layer says what it changes in any order: what it adds itself no whiteout of its own removes.
"""

from __future__ import annotations

import hashlib
import math
import stat
import tarfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from vmfork.container.root import Inode, PathError
from vmfork.errors import ArtifactError
from vmfork.host.compressed import DamagedError, decompressed
from vmfork.host.tar_reading import next_member, open_plain_tar, read_content
from vmfork.image.tree import Slice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.container.limits import Budget
    from vmfork.container.root import Root
    from vmfork.host.compressed import Source

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
# Of the host on which the layer was made: labels of its policy, and marks of its overlay.
_NOT_TAKEN = ("security.selinux", "trusted.overlay.", "user.overlay.")
_PIECE = 1 << 20
# More than this are not numbers of users, devices or times that an initramfs can hold.
MOST_NUMBER = 0xFFFF_FFFF
_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip


class Contents:
    """Appends contents of files to `file`, which stays its opener's."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._end = 0

    def take(self, size: int) -> Slice:
        """Room for `size` bytes."""
        place = Slice(self._end, size)
        self._end += size
        return place

    def write(self, place: Slice, offset: int, data: bytes) -> None:
        self.file.seek(place.offset + offset)
        self.file.write(data)

    def finish(self) -> None:
        """All places can be read, holes at the end too."""
        self.file.truncate(self._end)


@dataclass(slots=True)
class Applying:
    """The work on one image: `check()` is called again and again, and may raise to end it."""

    root: Root
    contents: Contents
    budget: Budget
    check: Callable[[], None] = lambda: None
    layers: int = field(default=0, init=False)

    def apply(self, source: Source, name: str) -> str:
        """The layer that `source` is, plain or made smaller by gzip or zstd, is applied. Gives its diff id.

        That is the digest of the tar, all of which was read. Raises `ArtifactError` about `name`; the root is of no use
        then.
        """
        self.layers += 1
        try:
            tar_stream = _Counted(decompressed(source), self.budget, name)
            tar = open_plain_tar(tar_stream)
            while (member := next_member(tar)) is not None:
                self.check()
                self._apply_member(tar, member, name)
            while tar_stream.read(_PIECE):  # what is behind the tar's end belongs to its digest
                self.check()
        except (tarfile.TarError, DamagedError) as error:
            raise ArtifactError(name, f"it is no layer: {error}") from error
        return f"sha256:{tar_stream.digest.hexdigest()}"

    def _apply_member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        described = len(member.name) + len(member.linkname) + sum(map(len, member.pax_headers.values()))
        self.budget.take(name, entries=1, described=described)
        try:
            path = self._read_path(member.name)
            if path and path[-1].startswith(_WHITEOUT):
                self._hide(path)
            elif member.islnk():
                self._link(path, self._read_path(member.linkname))
            else:
                self._put(path, tar, member, name)
        except PathError as error:
            raise ArtifactError(name, f"{member.name!r}: {error}") from error

    def _read_path(self, name: str) -> list[str]:
        """The names that `name` consists of; an absolute one begins at the image's root as well."""
        limits = self.budget.limits
        if "\0" in name:
            raise PathError("its name has a NUL in it")
        if len(name.encode("utf-8", "surrogateescape")) > limits.path_bytes:
            raise PathError(f"its name is longer than {limits.path_bytes} bytes")
        path = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in path:
            raise PathError("its name leads upwards (..), which no honest layer's does")
        if any(len(part.encode("utf-8", "surrogateescape")) > limits.name_bytes for part in path):
            raise PathError(f"a part of its name is longer than {limits.name_bytes} bytes")
        return path

    def _hide(self, path: list[str]) -> None:
        name = path[-1]
        if name == _OPAQUE:
            self.root.hide_entries(path[:-1], self.layers)
        elif name in (_WHITEOUT, f"{_WHITEOUT}.", f"{_WHITEOUT}.."):
            raise PathError("it is a whiteout of nothing that could have that name")
        elif not name.startswith(_WHITEOUT * 2):
            self.root.hide([*path[:-1], name.removeprefix(_WHITEOUT)], self.layers)

    def _link(self, path: list[str], target: list[str]) -> None:
        if not path:
            raise PathError("the root of an image is a folder, and this is none")
        self.root.link(path, target, self.layers)

    def _put(self, path: list[str], tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        inode = _read_inode(member)
        if not path:
            if not inode.is_folder:
                raise PathError("the root of an image is a folder, and this is none")
            self.root.inode.describe(inode)
            return
        if stat.S_ISREG(inode.mode):
            inode.content = self._copy(tar, member, name)
        self.root.put(path, inode, self.layers)

    def _copy(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Slice:
        if member.issparse() or member.size > self.budget.limits.unpacked_bytes:  # of its holes nothing was counted yet
            self.budget.take(name, unpacked=member.size)
        place = self.contents.take(member.size)
        for offset, data in read_content(tar, member):
            if offset + len(data) > member.size:
                raise tarfile.ReadError(f"{member.name!r} has more content than its size")
            self.check()
            self.contents.write(place, offset, data)
        return place


class _Counted:
    """A stream that counts what is read of it, by the digest and against the budget."""

    def __init__(self, source: Source, budget: Budget, name: str) -> None:
        self._source = source
        self._budget = budget
        self._name = name
        self.digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        self._budget.take(self._name, unpacked=len(data))
        return data


def _read_inode(member: tarfile.TarInfo) -> Inode:
    kind = stat.S_IFREG if member.isreg() else _KINDS.get(member.type)
    if kind is None:
        raise PathError(f"it is of a kind that no layer has ({member.type!r})")
    if not math.isfinite(member.mtime):
        raise PathError(f"its time is no number ({member.mtime})")
    numbers = (member.mode, member.uid, member.gid, member.devmajor, member.devminor)
    if not all(0 <= number <= MOST_NUMBER for number in numbers):
        raise PathError("its mode, owner or device has a number that Linux does not")
    inode = Inode(kind | stat.S_IMODE(member.mode), member.uid, member.gid, bound_time(member.mtime))
    inode.xattrs = _read_xattrs(member)
    if stat.S_ISLNK(inode.mode):
        if not member.linkname or "\0" in member.linkname:
            raise PathError("it is a symbolic link to nothing that could have that name")
        inode.target = member.linkname
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        inode.device = (member.devmajor, member.devminor)
    return inode


def bound_time(mtime: float) -> int:
    """The time as an initramfs can hold it, in seconds since 1970."""
    return min(max(int(mtime), 0), MOST_NUMBER)


def _read_xattrs(member: tarfile.TarInfo) -> dict[str, bytes]:
    """Capabilities among them, which are the attribute security.capability."""
    found = {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    }
    return {key: value for key, value in found.items() if is_taken(key)}


def is_taken(attribute: str) -> bool:
    """Whether an extended attribute is the image's own."""
    return not attribute.startswith(_NOT_TAKEN)
