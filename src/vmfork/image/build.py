"""Builds an image, or finds that it was built."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.config import DEFAULT_IMAGE, check_name
from vmfork.errors import ConfigError, HostError, ImageCorrupt, ImageNotFound, VMForkError
from vmfork.host.lock import FileLock
from vmfork.host.thread import check_wanted, in_thread
from vmfork.image import debootstrap, disk, lz4, recipe, rootfs
from vmfork.image.record import INITRAMFS_NAME, KERNEL_NAME, RECORD_NAME, Image, encode_record, name_content
from vmfork.image.store import ImageStore, hash_file
from vmfork.progress import Progress, ProgressListener, ignore_progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmfork.config import ImageConfig
    from vmfork.config.values import RootChoice

_log = logging.getLogger("vmfork")

_MIB = 1 << 20

# What a build of the default image takes at its peak, measured: packages and their files, then those and the tar.
NEEDED_MIB = 700

# Shares of the whole: mmdebstrap, then packing.
_DEBOOTSTRAP_SHARE = 0.85
_WAIT_S = 3600.0


async def build_image(
    name: str,
    config: ImageConfig,
    *,
    store: ImageStore,
    progress: ProgressListener = ignore_progress,
    rebuild: bool = False,
    not_before: str = "",
) -> Image:
    """`name` leads to an image of that configuration: the one it led to, one of the same recipe, or a new one.

    With `rebuild` it is built again, with the packages as Debian offers them today; where they are the same, so is the
    image. One that another name has is not taken when it was made before `not_before`, as `created_at` has it. Two
    builders of one recipe take turns, and the second uses what the first made. Raises `ImageError` when
    something is wrong with the packages or their source, and `HostError` when a program, a permission or space is
    missing. After either, and on cancel, everything is as it was before.
    """
    check_name(name, field="image")
    agent = await asyncio.to_thread(recipe.find_agent().read_bytes)
    digest = recipe.compute_digest(config, agent)
    found = _find_named(name, digest, store)
    if found is not None and not rebuild:
        return found
    with explained(store.folder):
        store.make()
        lock, waited = await lock_subject(digest, store, progress)
        with lock:
            image = await _reuse(name, digest, store, not_before) if waited or not rebuild else None
            if image is None:
                image = await _build(name, digest, config, agent, store=store, progress=progress)
    progress(Progress(task="image", step="done", fraction=1.0))
    return image


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raises `HostError`, saying what and where, for whatever the system refused in the block."""
    try:
        yield
    except (VMForkError, BrokenPipeError):  # a pipe is where a listener writes to, nothing of ours
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise debootstrap.explain_full_disk(folder) from error
        raise HostError(
            f"cannot build an image in {folder}: {error.strerror or error}",
            hint="set VMFORK_HOME to a folder you can write to",
        ) from error


def _find_named(name: str, digest: str, store: ImageStore) -> Image | None:
    """The image, when the name leads to one of that recipe already and nothing is to be done.

    Raises `ConfigError` where it leads to what was imported: that is not made of packages.
    """
    try:
        image = store.open(name)
    except (ImageNotFound, ImageCorrupt):
        return None
    if image.source and name != DEFAULT_IMAGE:
        hint = f"give another name, or remove it first: vmfork image rm {name}"
        raise ConfigError("image", name, f"image {name!r} was imported from {image.source}", hint=hint)
    return image if image.recipe == digest else None


async def lock_subject(subject: str, store: ImageStore, progress: ProgressListener) -> tuple[FileLock, bool]:
    """The lock of a recipe or an image, and whether another had it until now."""
    path, holder = store.lock_path(subject), f"process {os.getpid()}"
    if lock := FileLock.try_acquire(path, holder=holder):
        return lock, False
    progress(Progress(task="image", step="waiting for another build"))
    while True:
        if lock := await FileLock.acquire(path, holder=holder, wait_s=_WAIT_S):
            return lock, True


async def _reuse(name: str, digest: str, store: ImageStore, not_before: str) -> Image | None:
    """The image that another build, or another name, has of that recipe; `name` leads to it."""
    image = store.find_made_of(digest, name=name)
    if image is None or image.created_at < not_before:
        return None
    lock, _ = await lock_subject(image.digest, store, ignore_progress)
    with lock:
        # It may have been removed with its last name meanwhile.
        found = store.find_made_of(digest, name=name)
        if found is None or found.digest != image.digest:
            return None
        store.link(name, found.digest)
        return found


async def _build(
    name: str, digest: str, config: ImageConfig, agent: bytes, *, store: ImageStore, progress: ProgressListener
) -> Image:
    debootstrap.find_mmdebstrap()
    lz4.check_library()
    if config.root == "disk":
        disk.find_sqfstar()
    await asyncio.to_thread(store.sweep)
    _check_space(store.folder)

    def report(step: str, fraction: float) -> None:
        progress(Progress(task="image", step=step, fraction=fraction * _DEBOOTSTRAP_SHARE))

    with store.staging() as folder:
        tar, tmp, built = folder / "root.tar", folder / "tmp", folder / "image"
        tmp.mkdir()
        built.mkdir()
        started_at = int(time.time())
        await debootstrap.run_mmdebstrap(config.suite, recipe.list_packages(config), tar, tmp=tmp, report=report)
        progress(Progress(task="image", step="packing the image", fraction=_DEBOOTSTRAP_SHARE))
        source = Source(tar, config, agent, started_at=started_at)
        image = await in_thread(lambda stop: pack(source, built, name=name, digest=digest, stop=stop))
        lock, _ = await lock_subject(image.digest, store, ignore_progress)
        with lock:
            await in_thread(lambda _: commit(store, built, image))
            store.link(name, image.digest)
            return store.open(name)


def commit(store: ImageStore, built: Path, image: Image) -> None:
    """The image is in the store, and its disk in that of disks, which it holds."""
    sha256, made = image.disk_sha256, built / disk.NAME
    if not sha256:
        store.commit(built, image.digest)
        return
    store.disks.add(made, sha256)
    with store.disks.opened(sha256, image=image.name):  # a sweep leaves it alone
        store.commit(built, image.digest)
        store.disks.hold_for(store.folder / image.digest, sha256, image=image.name)


def _check_space(images_dir: Path) -> None:
    free = shutil.disk_usage(images_dir).free // _MIB
    if free < NEEDED_MIB:
        raise HostError(
            f"no space to build an image: {images_dir} has {free} MiB free, a build needs {NEEDED_MIB} MiB",
            hint="free some, or set VMFORK_HOME to a larger disk",
        )


@dataclass(frozen=True, slots=True)
class Source:
    """What an image is packed from. `started_at` is when the run that made the tar began, in seconds since 1970."""

    tar: Path
    config: ImageConfig
    agent: bytes
    started_at: int


def pack(source: Source, built: Path, *, name: str, digest: str, stop: threading.Event) -> Image:
    """`built` holds kernel, initramfs and record, made of the tar."""

    def check(_fraction: float = 0.0) -> None:
        check_wanted(stop)

    return _write_image(source, built, name=name, digest=digest, check=check)


def _write_image(source: Source, built: Path, *, name: str, digest: str, check: Callable[[float], None]) -> Image:
    config, slim = source.config, recipe.is_slim(source.config)
    kernel_path, initramfs_path, disk_path = built / KERNEL_NAME, built / INITRAMFS_NAME, built / disk.NAME
    with source.tar.open("rb") as tar:
        unpacked = rootfs.read_tar(tar, check, started_at=source.started_at)
        kernel = rootfs.read_kernel(unpacked.kernel)
        rootfs.drop(unpacked, slim=slim)
        rootfs.finish_tree(unpacked, source.agent, kernel.release)
        kernel_path.write_bytes(kernel.image)
        boots = unpacked.tree
        if goes_on_disk(config.root, boots.measure()):
            boots = rootfs.split(unpacked, source.agent, kernel.release)
            disk.write_disk(unpacked.tree, disk_path, check)
        with initramfs_path.open("wb") as file, lz4.LegacyWriter(file) as packer:
            boots.write(packer, check)
            packer.finish()
        unpacked_bytes = boots.measure()
        packages = rootfs.read_packages(unpacked.told, slim=slim)
    kernel_sha256, initramfs_sha256 = hash_file(kernel_path), hash_file(initramfs_path, lambda: check(1.0))
    disk_sha256 = hash_file(disk_path, lambda: check(1.0)) if disk_path.exists() else ""
    image = Image(
        name=name,
        digest=name_content(kernel_sha256, initramfs_sha256, disk_sha256),
        kernel=kernel_path,
        initramfs=initramfs_path,
        kernel_release=kernel.release,
        kernel_sha256=kernel_sha256,
        initramfs_sha256=initramfs_sha256,
        arch=recipe.ARCH,
        recipe=digest,
        suite=config.suite,
        requested=config.packages,
        bare=config.bare,
        packages=packages,
        unpacked_bytes=unpacked_bytes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel_bytes=kernel_path.stat().st_size,
        initramfs_bytes=initramfs_path.stat().st_size,
        boot_modules=recipe.list_boot_modules(),
        root=config.root,
        disk_sha256=disk_sha256,
        disk_bytes=disk_path.stat().st_size if disk_sha256 else 0,
    )
    (built / RECORD_NAME).write_bytes(encode_record(image))
    return image


def goes_on_disk(root: RootChoice, size_bytes: int) -> bool:
    """Whether a root of that size lies on a disk, as was asked, or by its size where nothing was."""
    if root != "auto":
        return root == "disk"
    if size_bytes < recipe.DISK_FROM_BYTES:
        return False
    try:
        disk.find_sqfstar()
    except HostError as error:
        _log.warning("note: the root of %d MiB lies in each guest's memory: %s", size_bytes // _MIB, error.message)
        return False
    return True
