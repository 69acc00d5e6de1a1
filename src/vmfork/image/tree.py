"""A guest's file system as a value in memory, before it becomes an archive."""

from __future__ import annotations

import posixpath
import stat
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from vmfork.image import cpio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_PAGE = 4096
_OWNER = 0o700
_LINKS_FOLLOWED = 40
_DEVICES = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes that lie in a file elsewhere, to be read when they are needed."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Node:
    """One path. `mode` carries the type bits; `body` is the content, or the target of a symbolic link.

    Nodes with the same `inode` (a path) are hard links to one file. `mtime` is in seconds since 1970. `device` are
    major and minor number.
    """

    mode: int
    body: bytes | Slice = b""
    mtime: int = 0
    inode: str = ""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        return self.body.size if isinstance(self.body, Slice) else len(self.body)


class Sink(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes) -> None: ...

    def copy(self, source: BinaryIO, part: Slice) -> None:
        """As `write` with what the slice of `source` holds."""


class Tree:
    """Paths without a leading slash -> nodes. Slices refer to `source`, which must outlive the tree.

    Whatever does not come from a tar belongs to root and has the date `mtime`.
    """

    def __init__(self, source: BinaryIO, *, mtime: int = 0) -> None:
        self._source = source
        self._mtime = mtime
        self._nodes: dict[str, Node] = {}

    def like(self) -> Tree:
        """An empty tree of the same source and date."""
        return Tree(self._source, mtime=self._mtime)

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __iter__(self) -> Iterator[str]:
        """Every path, parents before children."""
        return iter(sorted(self._nodes))

    def get(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def add_member(self, path: str, member: tarfile.TarInfo) -> None:
        """The member of the tar is at `path`; devices and pipes are left out, the kernel makes its own."""
        node = Node(stat.S_IMODE(member.mode), mtime=int(member.mtime), uid=member.uid, gid=member.gid)
        if member.isdir():
            self._nodes[path] = replace(node, mode=stat.S_IFDIR | node.mode)
        elif member.issym():
            self._nodes[path] = replace(node, mode=stat.S_IFLNK | 0o777, body=_encode(member.linkname))
        elif member.islnk():
            self._add_hard_link(path, posixpath.normpath(member.linkname))
        elif member.isreg():
            self._nodes[path] = replace(
                node, mode=stat.S_IFREG | node.mode, body=Slice(member.offset_data, member.size)
            )

    def add_node(self, path: str, node: Node) -> None:
        """The node is at `path`, below a folder that is there."""
        self._nodes[path] = node

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        """`path` is a folder of that mode; so are its parents, 0755 where they were missing."""
        self._add_parents(path)
        self._nodes[path] = Node(stat.S_IFDIR | mode, mtime=self._mtime)

    def add_file(self, path: str, body: bytes, mode: int = 0o644) -> None:
        self._add_parents(path)
        self._nodes[path] = Node(stat.S_IFREG | mode, body, self._mtime)

    def add_link(self, path: str, target: str) -> None:
        """`path` is a symbolic link to `target`."""
        self._add_parents(path)
        self._nodes[path] = Node(stat.S_IFLNK | 0o777, _encode(target), self._mtime)

    def remove(self, path: str) -> None:
        del self._nodes[path]

    def own(self, path: str, *, mode: int, uid: int, gid: int) -> None:
        """The node at `path` has that owner, and that mode where fakeroot may have changed it.

        fakeroot gives the owner more than was asked for, and changes no other permission. Once in 8,000 files it
        reported a mode of 0 that was wrong (1.37, a file of tzdata), and no package has such a file: 0 is not believed.
        """
        node = self._nodes[path]
        only_owners = (node.mode ^ mode) & 0o7777 & ~_OWNER == 0
        permissions = mode if mode and only_owners else stat.S_IMODE(node.mode)
        self._nodes[path] = replace(node, mode=stat.S_IFMT(node.mode) | permissions, uid=uid, gid=gid)

    def list_links(self) -> list[str]:
        """The paths of all symbolic links."""
        return [path for path, node in self._nodes.items() if stat.S_ISLNK(node.mode)]

    def read(self, path: str) -> bytes:
        """The content of the file at `path`, or the target of the symbolic link."""
        body = self._nodes[path].body
        if isinstance(body, bytes):
            return body
        self._source.seek(body.offset)
        return self._source.read(body.size)

    def resolve(self, path: str) -> str | None:
        """The path `path` leads to through the tree's symbolic links; `None` when it leads nowhere."""
        left = [part for part in path.split("/") if part]
        at = ""
        for _ in range(_LINKS_FOLLOWED * 10):
            if not left:
                return at
            part = left.pop(0)
            if part in (".", ".."):
                at = posixpath.dirname(at) if part == ".." else at
                continue
            step = posixpath.join(at, part)
            node = self._nodes.get(step)
            if node is None:
                return None
            if stat.S_ISLNK(node.mode):
                target = self.read(step).decode("utf-8", "surrogateescape")
                at = "" if target.startswith("/") else at
                left = [piece for piece in target.split("/") if piece] + left
            else:
                at = step
        return None

    def follow(self, path: str) -> str:
        """Where the symbolic link at `path` points, after one step, whether something is there or not."""
        target = self.read(path).decode("utf-8", "surrogateescape")
        folder, name = posixpath.split(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target)))
        inside = self.resolve(folder)
        return posixpath.join(folder.lstrip("/") if inside is None else inside, name)

    def measure(self) -> int:
        """The bytes the tree takes in a guest's memory: whole pages of content, without each inode's own cost."""
        sizes = {node.inode or path: node.size for path, node in self._nodes.items() if stat.S_ISREG(node.mode)}
        return sum(-(-size // _PAGE) * _PAGE for size in sizes.values())

    def write(self, file: cpio.Sink, check: Callable[[float], None]) -> int:
        """`file` holds the tree as an archive; its size. `check(fraction)` is called before every entry."""
        writer = cpio.Writer(file)
        groups = self._group_hard_links()
        inodes: dict[str, int] = {}
        left = {inode: len(paths) for inode, paths in groups.items()}
        paths = list(self)
        for number, path in enumerate(paths):
            check(number / len(paths))
            node = self._nodes[path]
            # The kernel makes each symbolic link of its own body: without one there would be none (init/initramfs.c).
            if not node.inode or stat.S_ISLNK(node.mode):
                writer.add(
                    path,
                    node.mode,
                    self.read(path),
                    mtime=node.mtime,
                    uid=node.uid,
                    gid=node.gid,
                    device=node.device,
                )
                continue
            if node.inode not in inodes:
                inodes[node.inode] = writer.next_ino()
            left[node.inode] -= 1
            body = b"" if left[node.inode] else self.read(path)
            writer.add(
                path,
                node.mode,
                body,
                mtime=node.mtime,
                uid=node.uid,
                gid=node.gid,
                ino=inodes[node.inode],
                nlink=len(groups[node.inode]),
                device=node.device,
            )
        return writer.finish()

    def write_tar(self, sink: Sink, check: Callable[[float], None]) -> None:
        """`sink` was given the tree as a tar, parents before children. `check(fraction)` is called before every one."""
        first: dict[str, str] = {}
        paths = list(self)
        for number, path in enumerate(paths):
            check(number / len(paths))
            node = self._nodes[path]
            member = tarfile.TarInfo(path)
            body: bytes | Slice = b""
            member.mode, member.mtime, member.uid, member.gid = stat.S_IMODE(node.mode), node.mtime, node.uid, node.gid
            if stat.S_ISDIR(node.mode):
                member.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(node.mode):
                member.type, member.linkname = tarfile.SYMTYPE, self.read(path).decode("utf-8", "surrogateescape")
            elif (there := first.setdefault(node.inode, path) if node.inode else path) != path:
                member.type, member.linkname = tarfile.LNKTYPE, there
            elif (kind := _DEVICES.get(stat.S_IFMT(node.mode))) is not None:
                member.type, (member.devmajor, member.devminor) = kind, node.device
            else:
                member.size, body = node.size, node.body
            sink.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
            if isinstance(body, Slice):
                sink.copy(self._source, body)
            else:
                sink.write(body)
            sink.write(bytes(-member.size % tarfile.BLOCKSIZE))
        sink.write(bytes(2 * tarfile.BLOCKSIZE))

    def _group_hard_links(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for path, node in self._nodes.items():
            if node.inode:
                groups.setdefault(node.inode, []).append(path)
        return groups

    def _add_hard_link(self, path: str, target: str) -> None:
        node = self._nodes.get(target)
        if node is None:
            return
        self._nodes[target] = self._nodes[path] = node if node.inode else replace(node, inode=target)

    def _add_parents(self, path: str) -> None:
        parent = posixpath.dirname(path)
        if parent and parent not in self._nodes:
            self.add_folder(parent)


def _encode(target: str) -> bytes:
    return target.encode("utf-8", "surrogateescape")
