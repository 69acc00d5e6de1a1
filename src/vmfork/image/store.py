"""Images on disk: commit, open, list, remove, sweep.

```
IMAGES/                      0700
    DIGEST/                  an image; renamed here when it is whole, so that what has this name is complete
        kernel  initramfs
        image.json           the record, written last
        least-memory.json    what this host measured of it since; goes with the folder (least.py)
    names/NAME               symbolic link to ../DIGEST; several names may share an image
    locks/DIGEST             flock: exclusive by who builds or removes that image; the file stays
    locks/DIGEST.memory      flock: exclusive by who measures the least memory of that image; the file stays
    .staging-RANDOM/         a build on its way: mmdebstrap's files, the tar, image/ as it will be
    .staging-RANDOM.lock     flock: held by that build as long as its process lives; made before the folder
```

A reader takes no lock; whoever makes a name lead to an image holds that image's lock. A staging folder whose lock
nobody holds, and an image without a name, are the rest of a crash, and the next build sweeps them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.config import check_name
from vmfork.errors import HostError, ImageCorrupt, ImageNotFound, StoreBusy
from vmfork.host.folders import link_atomically, make_private
from vmfork.host.lock import FileLock
from vmfork.image.least import read_least
from vmfork.image.record import RECORD_NAME, Image, RecordError, decode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAGING = ".staging-"
_LOCK = ".lock"
_CHUNK = 1 << 20
# renameat2(2), linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class ImageStore:
    """The images below one folder. A value: it holds nothing open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """The folders exist."""
        make_private(self.folder)
        (self.folder / "names").mkdir(exist_ok=True)
        (self.folder / "locks").mkdir(exist_ok=True)

    def open(self, name: str) -> Image:
        """The image called `name`. Cheap: sizes are compared with the record, contents are not read.

        `ImageNotFound`; `ImageCorrupt` when the record or a size is not right; `ConfigError` for an invalid name.
        """
        link = self._link_of(check_name(name, field="image"))
        try:
            folder = self.folder / Path(os.readlink(link)).name
        except OSError:
            raise ImageNotFound(name) from None
        image = self.find(folder.name, name=name)
        if image is None:
            raise ImageNotFound(name)
        return image

    def find(self, digest: str, *, name: str) -> Image | None:
        """The image of that digest, `None` when there is none; `ImageCorrupt` when it is damaged."""
        folder = self.folder / digest
        try:
            image = decode_record((folder / RECORD_NAME).read_bytes(), name=name, folder=folder)
        except FileNotFoundError:
            if folder.is_dir():
                raise ImageCorrupt(name, f"{RECORD_NAME} is missing") from None
            return None
        except (OSError, RecordError) as error:
            raise ImageCorrupt(name, str(error)) from error
        if image.digest != digest:
            raise ImageCorrupt(name, "the record is another image's")
        _check_size(image, image.kernel, image.kernel_bytes)
        _check_size(image, image.initramfs, image.initramfs_bytes)
        return replace(image, min_memory_mib=read_least(folder))

    def verify(self, name: str) -> Image:
        """The image, every byte of which is what was built; otherwise as `open`."""
        image = self.open(name)
        for path, want in ((image.kernel, image.kernel_sha256), (image.initramfs, image.initramfs_sha256)):
            if hash_file(path) != want:
                raise ImageCorrupt(name, f"{path.name} is not what was built")
        return image

    def list_images(self) -> list[Image]:
        """Every image that can be opened, by name."""
        images = []
        for name in self._list_names():
            try:
                images.append(self.open(name))
            except (ImageNotFound, ImageCorrupt):
                continue
        return images

    def remove(self, name: str) -> None:
        """The name is gone, and the files with it when no other name leads to them.

        `ImageNotFound`; `StoreBusy` while the image is being built. VMs that run from it are not affected.
        """
        link = self._link_of(check_name(name, field="image"))
        try:
            digest = Path(os.readlink(link)).name
        except OSError:
            raise ImageNotFound(name) from None
        lock = FileLock.try_acquire(self.lock_path(digest))
        if lock is None:
            raise StoreBusy(f"image {name!r}")
        with lock:
            link.unlink(missing_ok=True)
            if digest not in self._list_named():
                discard(self.folder / digest)

    def sweep(self) -> list[Path]:
        """What crashed builds left is gone; the folders that were removed. A build that runs is not touched."""
        swept = []
        # A crash may also leave one of the two, the lock or the folder, and an image that no name leads to.
        names = {path.name.removesuffix(_LOCK) for path in self.folder.glob(f"{_STAGING}*")}
        for folder in (self.folder / name for name in sorted(names)):
            lock = FileLock.try_acquire(_staging_lock(folder))
            if lock is None:
                continue
            with lock:
                if folder.is_dir():
                    _remove_tree(folder)
                    swept.append(folder)
                _staging_lock(folder).unlink(missing_ok=True)
        for folder in self.folder.iterdir():
            if _DIGEST.fullmatch(folder.name):
                self._discard_unnamed(folder.name)
        return swept

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of our own for a build, gone with the block whatever ends it."""
        folder = self.folder / f"{_STAGING}{secrets.token_hex(8)}"
        # The lock is held before the folder can be seen: a sweep never meets a live build's folder unlocked.
        lock = FileLock.try_acquire(_staging_lock(folder))
        if lock is None:
            raise StoreBusy(str(folder))
        with lock:
            try:
                folder.mkdir(mode=0o700)
                yield folder
            finally:
                _remove_tree(folder)
                _staging_lock(folder).unlink(missing_ok=True)

    def commit(self, built: Path, digest: str) -> None:
        """The folder `built` is the image of that digest. What was there before was replaced in one step."""
        for path in (*built.iterdir(), built):
            _sync(path)
        target = self.folder / digest
        if target.exists():
            _exchange(built, target)
        else:
            built.rename(target)
        _sync(self.folder)

    def link(self, name: str, digest: str) -> None:
        """`name` leads to the image. What it led to before is gone, unless another name leads there or it is built."""
        link = self._link_of(name)
        before = Path(os.readlink(link)).name if link.is_symlink() else digest
        if before != digest or not link.is_symlink():
            link_atomically(link, f"../{digest}")
        if before != digest:
            self._discard_unnamed(before)

    def lock_path(self, digest: str) -> Path:
        """What locks that image while it is built, removed or measured."""
        return self.folder / "locks" / digest

    def _discard_unnamed(self, digest: str) -> None:
        lock = FileLock.try_acquire(self.lock_path(digest)) if _DIGEST.fullmatch(digest) else None
        if lock is None:
            return
        with lock:
            if digest not in self._list_named():
                discard(self.folder / digest)

    def _link_of(self, name: str) -> Path:
        return self.folder / "names" / name

    def _list_names(self) -> list[str]:
        try:
            found = os.scandir(self.folder / "names")
        except FileNotFoundError:
            return []
        with found:
            # A link on its way to its place starts with a dot.
            return sorted(entry.name for entry in found if entry.is_symlink() and not entry.name.startswith("."))

    def _list_named(self) -> set[str]:
        """The digests that names lead to."""
        digests = set()
        for name in self._list_names():
            # Another command may remove the name just now.
            with suppress(FileNotFoundError):
                digests.add(Path(os.readlink(self._link_of(name))).name)
        return digests


def _check_size(image: Image, path: Path, want: int) -> None:
    try:
        have = path.stat().st_size
    except OSError as error:
        raise ImageCorrupt(image.name, f"{path.name}: {error.strerror}") from error
    if have != want:
        raise ImageCorrupt(image.name, f"{path.name} has {have} bytes, the record says {want}")


def hash_file(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of the file, in hex. `check()` is called for every MiB and may raise."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            check()
            digest.update(chunk)
    return digest.hexdigest()


def discard(folder: Path) -> None:
    """The folder is gone; its name was free at once, so that nobody opened a part of it."""
    doomed = folder.with_name(f"{_STAGING}{secrets.token_hex(8)}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    _remove_tree(doomed)


def _staging_lock(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _remove_tree(folder: Path) -> None:
    # Packages bring folders without write permission, which an ordinary user cannot empty.
    for path, folders, _ in os.walk(folder):
        for name in folders:
            child = Path(path, name)
            # A crashed build's mmdebstrap may be removing the same files just now.
            with suppress(FileNotFoundError):
                if not child.is_symlink():
                    child.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(one: Path, other: Path) -> None:
    """The two paths have changed places in one step, or nearly where the file system cannot: then the old is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise HostError(f"cannot replace {other}: {os.strerror(code)}")
    discard(other)
    one.rename(other)
