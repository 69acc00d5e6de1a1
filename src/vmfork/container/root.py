"""A root file system in memory: what layers are applied to, and what a boot root is made of.

A folder has entries, and an entry leads to an inode: hard links are entries that lead to one inode. Contents lie in a
file elsewhere. Each entry knows the layer that touched it last, because a whiteout hides only what is below its layer.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmfork.image.tree import Slice

# As many as Linux follows in one path (path_resolution(7)).
_MOST_LINKS = 40
_PLAIN_FOLDER = stat.S_IFDIR | 0o755


class PathError(ValueError):
    """A path leads nowhere that something could be."""


@dataclass(slots=True, eq=False)
class Inode:
    """`mode` has the type bits, `mtime` is in seconds since 1970, `device` are major and minor number.

    `content` is that of a file, `target` that of a symbolic link, and `entries` are those of a folder.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    content: Slice | None = None
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def describe(self, other: Inode) -> None:
        """It has the mode, owner, time and attributes of `other`."""
        self.mode, self.uid, self.gid, self.mtime, self.xattrs = (
            other.mode, other.uid, other.gid, other.mtime, other.xattrs,
        )  # fmt: skip


@dataclass(slots=True)
class Entry:
    """Where a name leads, and the number of the layer that touched it last."""

    inode: Inode
    layer: int


class Root:
    """The tree. Paths are sequences of names, none of them empty, `.` or `..`; they lead from its root on.

    Symbolic links on the way are followed as if it were the root of the system: none leads out of it.
    """

    def __init__(self, *, most_path: int = 4095) -> None:
        self.inode = Inode(_PLAIN_FOLDER)
        self._most_path = most_path

    def put(self, path: Sequence[str], inode: Inode, layer: int) -> None:
        """`path` leads to that inode, with the folders that were missing on the way.

        A folder at a folder's place keeps its entries; else what was there is gone. Raises `PathError`.
        """
        *above, name = path
        folder = self._open_folder(above, name, layer)
        there = folder.entries.get(name)
        if there is not None and there.inode.is_folder and inode.is_folder:
            there.inode.describe(inode)
            there.layer = layer
            return
        folder.entries[name] = Entry(inode, layer)

    def make_folder(self, path: Sequence[str], layer: int) -> Inode:
        """The folder that `path` leads to, made where it is missing: where a link leads to nothing, it is made there.

        Raises `PathError`.
        """
        return self._open_folder(path, "", layer)

    def link(self, path: Sequence[str], target: Sequence[str], layer: int) -> None:
        """`path` is one more name of what is at `target`. Raises `PathError` when nothing is, or a folder."""
        holder = self._find_folder(target[:-1]) if target else None
        found = holder.entries.get(target[-1]) if holder is not None else None
        if holder is None or found is None:
            raise PathError(f"it is a hard link to {'/'.join(target)!r}, which is not there")
        if found.inode.is_folder:
            raise PathError(f"it is a hard link to {'/'.join(target)!r}, which is a folder")
        *above, name = path
        entries = self._open_folder(above, name, layer).entries
        entries.pop(name, None)
        if self._find_folder(target[:-1]) is not holder or holder.entries.get(target[-1]) is not found:
            raise PathError(f"it is a hard link to {'/'.join(target)!r}, which it replaces")
        entries[name] = Entry(found.inode, layer)

    def hide(self, path: Sequence[str], layer: int) -> None:
        """What layers below `layer` have at `path` is gone; nothing happens where they have nothing.

        Raises `PathError` for a path that leads in a circle.
        """
        folder = self._find_folder(path[:-1])
        there = folder.entries.get(path[-1]) if folder is not None else None
        if folder is None or there is None:
            return
        if there.layer < layer:
            del folder.entries[path[-1]]
        else:
            _prune(there.inode, layer)

    def hide_entries(self, path: Sequence[str], layer: int) -> None:
        """What layers below `layer` have in the folder `path` is gone."""
        folder = self._find_folder(path)
        if folder is not None:
            _prune(folder, layer)

    def find(self, path: Sequence[str]) -> Inode | None:
        """What is at `path`, by way of symbolic links, the last one too; `None` when nothing is."""
        try:
            return self._walk(path, None)
        except PathError:
            return None

    def walk(self) -> Iterator[tuple[str, Inode]]:
        """Every path but the root's own, without a leading slash, and what is there; folders before their entries."""
        left = [("", self.inode)]
        while left:
            above, folder = left.pop()
            for name, entry in sorted(folder.entries.items()):
                path = f"{above}/{name}" if above else name
                yield path, entry.inode
                if entry.inode.is_folder:
                    left.append((path, entry.inode))

    def _find_folder(self, path: Sequence[str]) -> Inode | None:
        found = self._walk(path, None)
        return found if found is not None and found.is_folder else None

    def _open_folder(self, path: Sequence[str], name: str, layer: int) -> Inode:
        """The folder at `path`, which takes `name`, made where it is missing. All on the way is touched by `layer`."""
        found = self._walk(path, layer, size=len(name))
        assert found is not None
        return found

    def _walk(self, path: Sequence[str], layer: int | None, *, size: int = 0) -> Inode | None:
        """What is at `path`. With a layer it is a folder, made where it is missing. Raises `PathError`.

        `size` is that of what comes behind it.
        """
        above: list[tuple[Inode, str]] = []
        behind, at, links = size, self.inode, 0
        left = list(reversed(path))
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if above:
                    at, gone = above.pop()
                    size -= len(gone) + 1
                continue
            entry = at.entries.get(name) if at.is_folder else None
            if entry is None:
                if layer is None:
                    return None
                entry = at.entries[name] = Entry(Inode(_PLAIN_FOLDER), layer)
            if stat.S_ISLNK(entry.inode.mode):
                links += 1
                if links > _MOST_LINKS:
                    raise PathError("its path has more symbolic links than Linux follows, or they lead in a circle")
                target = entry.inode.target
                if target.startswith("/"):
                    at, above, size = self.inode, [], behind
                left.extend(reversed(target.split("/")))
                continue
            if layer is not None:
                if not entry.inode.is_folder:
                    raise PathError(f"it is below {name!r}, which is no folder")
                entry.layer = layer
            size += len(name) + 1
            if size > self._most_path:
                raise PathError(f"its path is longer than {self._most_path} bytes by way of symbolic links")
            above.append((at, name))
            at = entry.inode
        return at


def _prune(folder: Inode, layer: int) -> None:
    """What layers below `layer` put into the folder is gone, at any depth."""
    left = [folder]
    while left:
        at = left.pop()
        for name in [name for name, entry in at.entries.items() if entry.layer < layer]:
            del at.entries[name]
        left.extend(entry.inode for entry in at.entries.values() if entry.inode.is_folder)
