"""Images on disk: open, list, add, name, remove, sweep."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.config import check_name
from vmfork.errors import ImageCorrupt, ImageNotFound, StoreBusy
from vmfork.host.folders import NO_FILE, link_atomically, list_folder, make_private, read_file, read_link
from vmfork.host.lock import FileLock, is_locked
from vmfork.image.disks import DiskStore
from vmfork.image.least import read_least
from vmfork.image.record import RECORD_NAME, Image, decode_record
from vmfork.image.staging import discard, find_left, is_staging, open_staging, sweep_staging

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


class ImageStore:
    """The images of one vmfork.

    ```
    FOLDER/                      0700
        DIGEST/                  an image, named by its content; renamed here when it is whole, so that what has this
            kernel  initramfs        name is complete
            image.json           the record, written last
            least-memory.json    what this host measured of it since; goes with the folder (least.py)
        names/NAME               symbolic link to ../DIGEST; several names may share an image
        locks/DIGEST             flock: exclusive by who names or removes that image; the file stays
        locks/RECIPE             flock: exclusive by who builds of that recipe; the file stays
        locks/DIGEST.memory      flock: exclusive by who measures the least memory of that image; the file stays
        .staging-RANDOM/         a build on its way: mmdebstrap's files, the tar, image/ as it will be (staging.py)
        .staging-RANDOM.lock     flock: held by that build as long as its process lives; made before the folder
    ```

    A reader takes no lock; whoever makes a name lead to an image holds that image's lock. A staging folder whose lock
    nobody holds, and an image without a name, are the rest of a crash, and the next build sweeps them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disks = DiskStore(folder.with_name("disks"))

    def make(self) -> None:
        """The folders exist."""
        make_private(self.folder)
        (self.folder / "names").mkdir(exist_ok=True)
        (self.folder / "locks").mkdir(exist_ok=True)

    def open(self, name: str) -> Image:
        """The image called `name`. Cheap: sizes are compared with the record, contents are not read.

        Raises `ImageNotFound`; `ImageCorrupt` when the record or a size is not right; `ConfigError` for an invalid
        name.
        """
        digest = self._read_link(check_name(name, field="image"))
        image = self.find(digest, name=name) if digest else None
        if image is None:
            raise self._not_found(name)
        return image

    def find(self, digest: str, *, name: str) -> Image | None:
        """The image of that content, or `None` when there is none. Raises `ImageCorrupt` when it is damaged."""
        folder = self.folder / digest
        try:
            image = _read_record(folder, name=name)
        except FileNotFoundError:
            if folder.is_dir():
                raise ImageCorrupt(name, f"{RECORD_NAME} is missing") from None
            return None
        except ValueError as error:
            raise ImageCorrupt(name, str(error)) from error
        except OSError as error:
            if error.errno in NO_FILE:
                raise ImageCorrupt(name, str(error)) from error
            raise  # the host refused: the image may be whole
        if image.digest != digest:
            raise ImageCorrupt(name, "the record is another image's")
        _check_size(image, image.kernel, image.kernel_bytes)
        _check_size(image, image.initramfs, image.initramfs_bytes)
        if image.disk_sha256:
            _check_size(image, self.disks.locate(image.disk_sha256), image.disk_bytes)
        return replace(image, min_memory_mib=read_least(folder))

    def find_made_of(self, recipe: str, *, name: str) -> Image | None:
        """The image that was last built of that recipe, or `None`. A damaged one does not count."""
        made = [image for digest in self._list_digests() if (image := self._find_whole(digest, name=name))]
        return max((image for image in made if image.recipe == recipe), key=lambda i: i.created_at, default=None)

    def _find_whole(self, digest: str, *, name: str) -> Image | None:
        try:
            return self.find(digest, name=name)
        except ImageCorrupt:
            return None

    def verify(self, name: str) -> Image:
        """The image, every byte of which is what was built; otherwise as `open`."""
        image = self.open(name)
        _check_content(image)
        if image.disk_sha256:
            self.disks.verify(image.disk_sha256, image=name)
        return image

    def list_images(self) -> list[Image]:
        """Every image that can be opened, by name."""
        images = []
        for name in self.list_names():
            with suppress(ImageNotFound, ImageCorrupt):
                images.append(self.open(name))
        return images

    def remove(self, name: str) -> None:
        """The name is gone, and the files with it when no other name leads to them.

        Raises `ImageNotFound`; `StoreBusy` while another process names or removes the image. VMs that run from it are
        not affected.
        """
        digest = self.check_there(name)
        lock = FileLock.try_acquire(self.lock_path(digest))
        if lock is None:
            raise StoreBusy(f"image {name!r}")
        with lock:
            self._link_of(name).unlink(missing_ok=True)
            self._discard_unnamed(digest)

    def find_digest(self, name: str) -> str | None:
        """The digest that the name leads to, or `None` where there is no such name."""
        return self._read_link(check_name(name, field="image"))

    def check_there(self, name: str) -> str:
        """The digest that the name leads to. Raises `ImageNotFound`."""
        digest = self.find_digest(name)
        if digest is None:
            raise self._not_found(name)
        return digest

    def _not_found(self, name: str) -> ImageNotFound:
        return ImageNotFound(name, known=self.list_names())

    def staging(self) -> AbstractContextManager[Path]:
        """A folder of our own for a build, gone with the block whatever ends it."""
        return open_staging(self.folder)

    def commit(self, built: Path, digest: str) -> None:
        """The folder `built` is the image of that digest. The caller holds its lock.

        Where the image is in the store already, it stays, with what was measured of it. Built of another recipe, or
        found at another source, it has the new record: with that of the former, the same would be built again each
        time. Damaged, it is replaced.
        """
        there = self.find_checked(digest)
        if there is not None:
            made = _read_record(built, name=digest)
            if (made.recipe, made.sources) != (there.recipe, there.sources):
                _sync(built / RECORD_NAME)
                (built / RECORD_NAME).replace(self.folder / digest / RECORD_NAME)
            return
        for path in (*built.iterdir(), built):
            _sync(path)
        discard(self.folder / digest)
        built.rename(self.folder / digest)
        _sync(self.folder)

    def find_checked(self, digest: str) -> Image | None:
        """The image of that content, every byte of it compared, or `None`. A damaged one does not count."""
        image = self._find_whole(digest, name=digest)
        try:
            if image is not None:
                _check_content(image)
        except ImageCorrupt:
            return None
        return image

    def link(self, name: str, digest: str) -> None:
        """`name` leads to the image. The caller holds the lock of `digest`.

        The image that it led to before is gone, unless another name leads there or somebody holds its lock.
        """
        before = self._read_link(name)
        if before == digest:
            return
        link_atomically(self._link_of(name), f"../{digest}")
        if before is not None:
            self._discard_if_free(before)

    def lock_path(self, subject: str) -> Path:
        """Where the lock of a digest, or of a recipe, lies."""
        return self.folder / "locks" / subject

    def sweep(self) -> list[Path]:
        """The folders that crashed builds left are gone, and given. A build that runs is not touched."""
        swept = sweep_staging(self.folder)
        for digest in self._list_digests():
            self._discard_if_free(digest)
        return swept

    def find_waste(self) -> list[Path]:
        """The folders that a sweep would remove, at this moment."""
        named = {self._read_link(name) for name in self.list_names()}
        unnamed = [digest for digest in self._list_digests() if digest not in named]
        free = [self.folder / digest for digest in unnamed if not is_locked(self.lock_path(digest))]
        return [*find_left(self.folder), *free]

    def find_strangers(self) -> list[Path]:
        """What lies beside the images and is not ours. Nothing of ours touches it."""
        ours = {"names", "locks", *self._list_digests()}
        return [path for path in list_folder(self.folder) if path.name not in ours and not is_staging(path)]

    def _discard_if_free(self, digest: str) -> None:
        lock = FileLock.try_acquire(self.lock_path(digest)) if _DIGEST.fullmatch(digest) else None
        if lock is None:
            return
        with lock:
            self._discard_unnamed(digest)

    def _discard_unnamed(self, digest: str) -> None:
        if digest not in {self._read_link(name) for name in self.list_names()}:
            discard(self.folder / digest)
            self.disks.sweep()

    def _link_of(self, name: str) -> Path:
        return self.folder / "names" / name

    def _read_link(self, name: str) -> str | None:
        """The digest that `name` leads to. Raises `OSError` when that cannot be seen: a sweep would take the image."""
        target = read_link(self._link_of(name))
        return None if target is None else Path(target).name

    def list_names(self) -> list[str]:
        """The names that images have, sorted; one may be damaged."""
        try:
            found = os.scandir(self.folder / "names")
        except FileNotFoundError:
            return []
        with found:
            # A link on its way to its place starts with a dot.
            return sorted(entry.name for entry in found if entry.is_symlink() and not entry.name.startswith("."))

    def _list_digests(self) -> list[str]:
        return [path.name for path in list_folder(self.folder) if _DIGEST.fullmatch(path.name)]


def _read_record(folder: Path, *, name: str) -> Image:
    return decode_record(read_file(folder / RECORD_NAME), name=name, folder=folder)


def hash_file(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of the file, in hex. `check()` is called for every MiB and may raise."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            check()
            digest.update(chunk)
    return digest.hexdigest()


def _check_size(image: Image, path: Path, want: int) -> None:
    try:
        have = path.stat().st_size
    except FileNotFoundError as error:
        raise ImageCorrupt(image.name, f"{path.name}: {error.strerror}") from error
    if have != want:
        raise ImageCorrupt(image.name, f"{path.name} has {have} bytes, the record says {want}")


def _check_content(image: Image) -> None:
    for path, want in ((image.kernel, image.kernel_sha256), (image.initramfs, image.initramfs_sha256)):
        if hash_file(path) != want:
            raise ImageCorrupt(image.name, f"{path.name} is not what was built")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
