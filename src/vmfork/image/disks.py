"""Disks on disk: file systems that guests only read, by the digest of their content, each there once for all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ImageCorrupt
from vmfork.host.folders import (
    NO_FILE,
    find_content,
    link_atomically,
    list_folder,
    make_private,
    open_file,
    read_link,
    write_whole,
)
from vmfork.host.lock import try_lock
from vmfork.image.staging import discard, find_left, is_staging, remove_tree, staging_named, sweep_staging
from vmfork.records import find_value, write_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DISK, _STAMP, _USERS, _LOCK = "disk", "stamp.json", "users", "lock"
_CHUNK = 1 << 20
# This much of a digest tells the disks of a host apart.
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the file system said of a disk when its content was found to be right. Whoever writes to it changes that."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, fd: int) -> Stamp:
        info = os.fstat(fd)
        return cls(inode=info.st_ino, size_bytes=info.st_size, mtime_ns=info.st_mtime_ns, ctime_ns=info.st_ctime_ns)


class DiskStore:
    """The disks of one vmfork.

    ```
    FOLDER/                      0700
        lock                     flock: exclusive by who adds, holds or sweeps; the file stays
        SHA256/                  a disk, named by its content
            disk                 0400; flock: shared by each machine that has it, as long as its emulator lives
            stamp.json           what the file system said of it when it was read last, and was whole
            users/ID             symbolic link to the image or the template that needs it
    ```

    A disk whose users are all gone, and that no machine has, is the next sweep's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate(self, sha256: str) -> Path:
        """Where the disk of that content lies, if it does. Raises `ValueError` for what is no digest.

        It may come with a template from elsewhere.
        """
        if not _DIGEST.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no digest of a disk")
        return self.folder / sha256 / _DISK

    def add(self, path: Path, sha256: str) -> None:
        """The file at `path`, whose content that is, is in the store, and nowhere else."""
        make_private(self.folder)
        with self._locked():
            place = self.folder / sha256
            if self._is_whole(sha256):
                path.unlink()
                return
            discard(place)
            make_private(place)
            path.chmod(0o400)
            fd = open_file(path)
            try:
                os.fsync(fd)
                path.rename(place / _DISK)
                write_whole(place / _STAMP, write_record(Stamp.of(fd)))
            finally:
                os.close(fd)

    def lock_of_fetch(self, sha256: str) -> Path:
        """What whoever fetches that disk locks, exclusively; they remove it. To a sweep it is a staging's."""
        return staging_named(self.folder, sha256)[1]

    @contextmanager
    def fetching(self, sha256: str) -> Iterator[Path]:
        """Where that disk can be made. The caller has `lock_of_fetch`. Nothing is left of it."""
        folder, _ = staging_named(self.folder, sha256)
        remove_tree(folder)  # of one that was killed
        folder.mkdir(mode=0o700)
        try:
            yield folder / _DISK
        finally:
            remove_tree(folder)

    def take_in(self, path: Path, sha256: str, *, image: str) -> int:
        """As `add`, and then as `open`: nobody has removed it in between."""
        fd = open_file(path)
        with ExitStack() as always:
            always.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            self.add(path, sha256)
            return self.open(sha256, image=image)

    def open(self, sha256: str, *, image: str) -> int:
        """A descriptor of the disk, which was whole when it was opened and is there as long as anybody has it.

        Its content is read where the file system does not say that it is as it was when it was read last. Raises
        `ImageCorrupt`, with the name of the image that it is of, when it is missing or another.
        """
        try:
            fd = open_file(self.locate(sha256))
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno not in NO_FILE:
                raise  # the host refused: the disk may be whole
            raise ImageCorrupt(image, f"its disk {sha256[:_SHOWN]} is missing") from error
        with ExitStack() as on_failure:
            on_failure.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ImageCorrupt(image, f"its disk {sha256[:_SHOWN]} is being removed") from error
            self._check(fd, sha256, image=image)
            on_failure.pop_all()
        return fd

    @contextmanager
    def opened(self, sha256: str, *, image: str) -> Iterator[int]:
        """As `open`, until the end of the block."""
        fd = self.open(sha256, image=image)
        try:
            yield fd
        finally:
            os.close(fd)

    def _check(self, fd: int, sha256: str, *, image: str) -> None:
        stamp, place = Stamp.of(fd), self.folder / sha256 / _STAMP
        if find_value(Stamp, find_content(place)) == stamp:
            return
        if _hash(fd) != sha256:
            raise ImageCorrupt(image, f"its disk {sha256[:_SHOWN]} is another: its content is not what was built")
        write_whole(place, write_record(stamp))

    def verify(self, sha256: str, *, image: str) -> None:
        """Every byte of the disk is what was built. Raises as `open`."""
        with self.opened(sha256, image=image) as fd:
            if _hash(fd) != sha256:
                raise ImageCorrupt(image, f"its disk {sha256[:_SHOWN]} is not what was built")

    def hold_for(self, user: Path, sha256: str, *, image: str) -> None:
        """The disk is there as long as something is at `user`. Raises `ImageCorrupt` when it is missing."""
        place = self.locate(sha256).parent
        with self._locked() if place.is_dir() else nullcontext():
            if not (place / _DISK).exists():
                raise ImageCorrupt(image, f"its disk {sha256[:_SHOWN]} is missing")
            (place / _USERS).mkdir(mode=0o700, exist_ok=True)
            for link in list_folder(place / _USERS):
                if not link.exists():
                    link.unlink()
            link_atomically(place / _USERS / hashlib.sha256(os.fsencode(user)).hexdigest()[:16], str(user))

    def list_users(self, sha256: str) -> list[Path]:
        """The images and templates that need the disk, those that are there."""
        targets = (read_link(link) for link in list_folder(self.folder / sha256 / _USERS))
        return sorted(path for target in targets if target is not None and (path := Path(target)).exists())

    def sweep(self) -> list[Path]:
        """The disks that nothing needs any more are gone, and given."""
        if not self.folder.is_dir():
            return []
        with self._locked():
            unneeded = self._list_unneeded()
            for path in unneeded:
                discard(path)
            return [*sweep_staging(self.folder), *unneeded]

    def find_waste(self, *, without: AbstractSet[Path] = frozenset()) -> list[Path]:
        """The folders that a sweep would remove, at this moment, or once those `without` are gone, which need some."""
        return [*find_left(self.folder), *self._list_unneeded(without)]

    def find_strangers(self) -> list[Path]:
        """What lies beside the disks and is not ours. Nothing of ours touches it."""
        return [
            path
            for path in self._list()
            if not (path.name == _LOCK or _DIGEST.fullmatch(path.name) or is_staging(path))
        ]

    def _list(self) -> list[Path]:
        return list_folder(self.folder)

    def _list_unneeded(self, without: AbstractSet[Path] = frozenset()) -> list[Path]:
        return [path for path in self._list() if _DIGEST.fullmatch(path.name) and self._is_free(path.name, without)]

    def _is_free(self, sha256: str, without: AbstractSet[Path]) -> bool:
        if any(without.isdisjoint((user, *user.parents)) for user in self.list_users(sha256)):
            return False
        try:
            fd = open_file(self.locate(sha256))
        except OSError:
            return True
        try:
            return try_lock(fd)
        finally:
            os.close(fd)

    def _is_whole(self, sha256: str) -> bool:
        try:
            with self.opened(sha256, image=sha256):
                pass
        except ImageCorrupt:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = open_file(self.folder / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # whoever has it renames a few files
            yield
        finally:
            os.close(fd)


def _hash(fd: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()
