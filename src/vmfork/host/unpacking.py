"""The bytes of a tree (`wire/tree.py`) as files of the host. A guest made them up, so nothing of them is trusted."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vmfork.copied import Tally
from vmfork.errors import ConfigError, HostError, LimitExceeded, ProtocolError
from vmfork.host.thread import in_thread
from vmfork.wire.tree import SHARED, Entry, FileEnd, Piece, TreeParser

if TYPE_CHECKING:
    from threading import Event

    from vmfork.copied import Copied
    from vmfork.wire.tree import Part

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What a name counts for beside its content, so that one limit bounds empty files too: a block of most file systems.
_SIZE_OF_A_NAME = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tree goes, and what of it is taken.

    A file goes under `name` into the folder at `path`, if there is one, and else takes the place of what is at `path`.
    A folder is at `path` afterwards. `archive` keeps owners. With more than `max_bytes` a `LimitExceeded` names
    `operation`.
    """

    path: str
    name: str
    operation: str
    parents: bool = False
    archive: bool = False
    outside_links: bool = False
    max_bytes: int | None = None

    def within_folder(self) -> Place:
        """The same place, said by the folder that it is in, which is there, and its name. Raises `ConfigError`."""
        if os.path.isdir(self.path):
            return self
        folder, name = os.path.split(self.path)
        place = replace(self, path=folder or ".", name=name or self.name)
        try:
            if self.parents:
                os.makedirs(place.path, exist_ok=True)
            os.stat(os.path.join(place.path, "."))
        except OSError as error:
            raise _not_writable(self.path, place.path, error) from error
        return place


@dataclass(slots=True)
class _Level:
    """A folder on the way. `entry` of one that was made: it is set when the folder is left."""

    fd: int
    entry: Entry | None = None


@dataclass(slots=True)
class _File:
    """The file that comes, under its temporary name."""

    fd: int
    entry: Entry
    size_bytes: int = 0
    written_to: int = 0


class Unpacking:
    """Makes one tree. Blocks; `close` is due.

    What a guest sends cannot leave the place: entries have single names, every folder on the way is opened by its own
    name and no link is followed. Every file and link stands under a temporary name until it is whole, and then takes
    the place of what had its name. A folder that is there keeps its mode and time. No file has set-user-ID or
    set-group-ID.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._parser = TreeParser()
        self._tally = Tally()
        self._levels: list[_Level] = []
        self._path: list[bytes] = []
        self._root_name = b""
        self._merges = False
        self._file: _File | None = None
        # What the guest cannot guess, so that no name of its own is taken.
        self._temporary = b".vmfork-" + secrets.token_hex(8).encode()
        self._entries = self._size_bytes = 0
        self._shared: dict[bytes, tuple[int, int]] = {}

    @property
    def copied(self) -> Copied:
        """What arrived so far."""
        return self._tally.copied

    @property
    def at(self) -> str:
        """The name that came last, from the folder that is copied on."""
        return os.fsdecode(b"/".join(self._path)) or "."

    @property
    def operation(self) -> str:
        """What is done, in errors."""
        return self._place.operation

    async def open(self) -> None:
        """As `open_place`, in a thread."""
        await in_thread(lambda _: self.open_place())

    async def take(self, data: bytes | bytearray) -> None:
        """As `feed`, in a thread."""
        await in_thread(partial(self.feed, data))

    def open_place(self) -> None:
        """The folder that will hold the root is there. Raises `ConfigError` when it is not."""
        path = os.path.realpath(os.fsencode(self._place.path))
        self._merges = os.path.isdir(path)
        holder, self._root_name = os.path.split(path)
        try:
            if self._place.parents and not self._merges:
                os.makedirs(holder, exist_ok=True)
            self._levels.append(_Level(os.open(path if self._merges else holder, _FOLDER)))
        except OSError as error:
            raise _not_writable(self._place.path, os.fsdecode(holder), error) from error

    def feed(self, data: bytes | bytearray, stop: Event) -> None:
        """What `data` completes is made, until `stop` is set.

        Raises `ProtocolError`, `LimitExceeded`, `HostError`, and `OSError`.
        """
        for part in self._parser.feed(data):
            if stop.is_set():
                return
            try:
                self._make(part)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._shown()) from error

    async def finish(self, entries: int, size_bytes: int) -> None:
        """As `check_whole`."""
        self.check_whole(entries, size_bytes)

    def check_whole(self, entries: int, size_bytes: int) -> None:
        """Raises `ProtocolError` when the tree is not whole, or not what the guest says that it sent."""
        sent, came = (entries, size_bytes), (self._entries, self._size_bytes)
        if not self._parser.has_ended or sent != came:
            raise ProtocolError(f"the guest sent {sent} names and bytes, {came} came")

    def close(self) -> None:
        """No descriptor is open, and what was half made is gone."""
        if self._file is not None:
            os.close(self._file.fd)
            self._file = None
        if self._levels:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._levels[-1].fd)
        while self._levels:
            with suppress(OSError):
                self._leave()

    def _shown(self) -> str:
        return os.path.join(self._place.path, *map(os.fsdecode, self._path))

    @property
    def _here(self) -> int:
        return self._levels[-1].fd

    def _make(self, part: Part) -> None:
        match part:
            case Piece():
                self._write(part)
            case FileEnd():
                self._end_file(part.size)
            case Entry():
                self._make_entry(part)
            case _:
                self._leave()

    def _check_limit(self) -> None:
        limit = self._place.max_bytes
        if limit is not None and self._size_bytes + self._entries * _SIZE_OF_A_NAME > limit:
            hint = "allow more (max_bytes); each name counts for 4,096 bytes beside its content"
            raise LimitExceeded(self._place.operation, limit, hint=hint)

    def _make_entry(self, entry: Entry) -> None:
        self._entries += 1
        self._check_limit()
        if len(self._levels) == 1:
            entry = self._name_root(entry)
        depth = len(self._levels) - 2  # folders below the root
        del self._path[max(0, depth) :]
        if depth >= 0 or entry.type == "file":
            self._path.append(entry.name)
        match entry.type:
            case "dir":
                self._make_folder(entry)
            case "file":
                self._open_file(entry)
            case "link":
                self._make_link(entry, depth)
            case "hard":
                self._make_hard_link(entry)
            case "other":
                self._tally.skip(self.at)

    def _name_root(self, entry: Entry) -> Entry:
        """The root under the name that it has here: a guest has no say in that."""
        if entry.type not in ("file", "dir"):
            raise ProtocolError(f"a tree that is a {entry.type!r} was not asked for")
        if entry.type == "dir" or not self._merges:
            if entry.type == "file" and self._place.path.endswith("/"):
                raise HostError(f"there is no folder {self._place.path!r}", hint="make it first, or name a file")
            return entry._replace(name=self._root_name)
        return entry._replace(name=os.fsencode(self._place.name))

    def _make_folder(self, entry: Entry) -> None:
        if self._merges and len(self._levels) == 1:
            self._levels.append(_Level(os.open(b".", _FOLDER, dir_fd=self._here)))
            self._tally.add("dir", self.at)
            return
        made = True
        try:
            os.mkdir(entry.name, 0o700, dir_fd=self._here)
        except FileExistsError:
            made = False
        try:
            fd = os.open(entry.name, _FOLDER, dir_fd=self._here)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            hint = "remove it, or copy to another place"
            raise HostError(f"{self._shown()} is here, and no folder", hint=hint) from error
        self._levels.append(_Level(fd, entry if made else None))
        self._tally.add("dir", self.at)

    def _leave(self) -> None:
        level = self._levels.pop()
        try:
            if level.entry is not None:
                self._dress(level.fd, level.entry)
        finally:
            os.close(level.fd)

    def _dress(self, fd: int, entry: Entry) -> None:
        if self._place.archive:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & (0o1777 if self._place.archive else 0o777))
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _open_file(self, entry: Entry) -> None:
        self._file = _File(os.open(self._temporary, _NEW_FILE, 0o600, dir_fd=self._here), entry)

    def _write(self, piece: Piece) -> None:
        assert self._file is not None
        self._size_bytes += len(piece.data)
        self._check_limit()
        rest, at = memoryview(piece.data), piece.offset
        while rest:
            put = os.pwrite(self._file.fd, rest, at)
            rest, at = rest[put:], at + put
        self._file.size_bytes += len(piece.data)
        self._file.written_to = at

    def _end_file(self, size: int) -> None:
        assert self._file is not None
        fd, entry = self._file.fd, self._file.entry
        if self._file.written_to < size:
            os.ftruncate(fd, size)  # a hole at the end
        self._dress(fd, entry)
        self._put_in_place(entry)
        if entry.target == SHARED:
            st = os.fstat(fd)
            self._shared[b"/".join(self._path)] = st.st_dev, st.st_ino
        self._tally.add("file", self.at, self._file.size_bytes)
        self._file = None
        os.close(fd)

    def _put_in_place(self, entry: Entry) -> None:
        try:
            os.replace(self._temporary, entry.name, src_dir_fd=self._here, dst_dir_fd=self._here)
        except IsADirectoryError as error:
            raise HostError(f"{self._shown()} is a folder here", hint="remove it, or copy to another place") from error

    def _make_link(self, entry: Entry, depth: int) -> None:
        if not self._place.outside_links:
            check_inside(entry.target, depth, self.at)
        os.symlink(entry.target, self._temporary, dir_fd=self._here)
        if self._place.archive:
            os.chown(self._temporary, entry.uid, entry.gid, dir_fd=self._here, follow_symlinks=False)
        times = entry.mtime_ns, entry.mtime_ns
        os.utime(self._temporary, ns=times, dir_fd=self._here, follow_symlinks=False)
        self._put_in_place(entry)
        self._tally.add("link", self.at)

    def _make_hard_link(self, entry: Entry) -> None:
        """Only a file that this copy made gets another name: one of the host's own would be given to the guest."""
        known = self._shared.get(entry.target)
        if known is None:
            raise ProtocolError(f"{self.at!r} is to be another name of {entry.target!r}, which did not come")
        *folders, name = entry.target.split(b"/")
        holder = self._open_below_root(folders)
        try:
            os.link(name, self._temporary, src_dir_fd=holder, dst_dir_fd=self._here, follow_symlinks=False)
        finally:
            os.close(holder)
        # By now the name may be another file's, or that of a link: the guest may send a name twice.
        st = os.stat(self._temporary, dir_fd=self._here, follow_symlinks=False)
        if (st.st_dev, st.st_ino) != known or not stat.S_ISREG(st.st_mode):
            raise ProtocolError(f"{entry.target!r} is not the file any more that it was")
        self._put_in_place(entry)
        with suppress(FileNotFoundError):  # rename(2) does nothing where both are names of one file
            os.unlink(self._temporary, dir_fd=self._here)
        self._tally.add("hard", self.at)

    def _open_below_root(self, folders: list[bytes]) -> int:
        fd = os.dup(self._levels[1].fd)
        for name in folders:
            try:
                below = os.open(name, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _not_writable(given: str, folder: str, error: OSError) -> ConfigError:
    told = f"{given!r} cannot be written: {folder}: {error.strerror}"
    return ConfigError("local", given, told, hint="name a place in a folder that is here, or give parents=True")


def check_inside(target: bytes, depth: int, at: str) -> None:
    """Raises `HostError` for the link `at`, in a folder `depth` below the root, where that may lead out of the tree."""
    if not _stays_inside(target, depth):
        told = f"the link {at!r} leads out of what is copied, to {os.fsdecode(target)!r}"
        raise HostError(told, hint="outside_links=True keeps such links as they are: follow none of them here")


def _stays_inside(target: bytes, depth: int) -> bool:
    """Whether a link in a folder `depth` below the root leads to what is in the tree, whatever other links there are.

    `..` may only come first. Behind a name it goes up from where that leads: with `a` a link to `../..`, `a/..` may be
    outside.
    """
    if target[:1] in (b"", b"/"):
        return False
    names = target.split(b"/")
    up = next((at for at, name in enumerate(names) if name != b".."), len(names))
    return up <= depth and b".." not in names[up:]
