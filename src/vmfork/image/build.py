"""Builds an image, or finds that it was built."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from vmfork.config import check_name
from vmfork.errors import HostError, ImageCorrupt, ImageNotFound, VMForkError
from vmfork.host.lock import FileLock
from vmfork.image import debootstrap, lz4, recipe, rootfs
from vmfork.image.record import INITRAMFS_NAME, KERNEL_NAME, RECORD_NAME, Image, encode_record
from vmfork.image.store import ImageStore, hash_file
from vmfork.progress import Progress, ProgressListener, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmfork.config import ImageConfig

T = TypeVar("T")

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
) -> Image:
    """`name` leads to the image of that configuration, built unless it was before.

    With `rebuild` it is built again, with the packages as Debian offers them today. Two builders of one image take
    turns, and the second uses what the first made. `ImageError` for what is wrong with the packages or their source,
    `HostError` for a missing program or no space; then, and on cancel, everything is as it was before.
    """
    check_name(name, field="image")
    agent = await asyncio.to_thread(recipe.find_agent().read_bytes)
    digest = recipe.compute_digest(config, agent)
    if not rebuild and (image := _find_named(name, digest, store)):
        return image
    with _explained(store):
        store.make()
        lock, waited = await _lock_digest(digest, store, progress)
        with lock:
            image = _find_usable(digest, name, store) if waited or not rebuild else None
            if image is None:
                image = await _build(name, digest, config, agent, store=store, progress=progress)
            store.link(name, digest)
    progress(Progress(task="image", step="done", fraction=1.0))
    return image


@contextmanager
def _explained(store: ImageStore) -> Iterator[None]:
    """What the system refused in the block is a `HostError` that says what and where."""
    try:
        yield
    except (VMForkError, BrokenPipeError):  # a pipe is where a listener writes to, nothing of ours
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise debootstrap.explain_full_disk(store.folder) from error
        raise HostError(
            f"cannot build an image in {store.folder}: {error.strerror or error}",
            hint="set VMFORK_HOME to a folder you can write to",
        ) from error


def _find_named(name: str, digest: str, store: ImageStore) -> Image | None:
    """The image, when the name leads to it already and nothing is to be done."""
    try:
        image = store.open(name)
    except (ImageNotFound, ImageCorrupt):
        return None
    return image if image.digest == digest else None


def _find_usable(digest: str, name: str, store: ImageStore) -> Image | None:
    """A damaged image counts as none: building mends it."""
    try:
        return store.find(digest, name=name)
    except ImageCorrupt:
        return None


async def _lock_digest(digest: str, store: ImageStore, progress: ProgressListener) -> tuple[FileLock, bool]:
    """The right to build that image, and whether another had it until now."""
    path, holder = store.lock_path(digest), f"process {os.getpid()}"
    if lock := FileLock.try_acquire(path, holder=holder):
        return lock, False
    progress(Progress(task="image", step="waiting for another build"))
    while True:
        if lock := await FileLock.acquire(path, holder=holder, wait_s=_WAIT_S):
            return lock, True


async def _build(
    name: str, digest: str, config: ImageConfig, agent: bytes, *, store: ImageStore, progress: ProgressListener
) -> Image:
    debootstrap.find_mmdebstrap()
    lz4.check_library()
    await asyncio.to_thread(store.sweep)
    _check_space(store)

    def report(step: str, fraction: float) -> None:
        progress(Progress(task="image", step=step, fraction=fraction * _DEBOOTSTRAP_SHARE))

    with store.staging() as folder:
        tar, tmp, built = folder / "root.tar", folder / "tmp", folder / "image"
        tmp.mkdir()
        built.mkdir()
        await debootstrap.run_mmdebstrap(config.suite, recipe.list_packages(config), tar, tmp=tmp, report=report)
        progress(Progress(task="image", step="packing the image", fraction=_DEBOOTSTRAP_SHARE))
        image = await _in_thread(
            lambda stop: _pack(tar, built, config, name=name, digest=digest, agent=agent, stop=stop)
        )
        await _in_thread(lambda _: store.commit(built, digest))
    return store.find(digest, name=name) or image


def _check_space(store: ImageStore) -> None:
    free = shutil.disk_usage(store.folder).free // _MIB
    if free < NEEDED_MIB:
        raise HostError(
            f"no space to build an image: {store.folder} has {free} MiB free, a build needs {NEEDED_MIB} MiB",
            hint="free some, or set VMFORK_HOME to a larger disk",
        )


class _StoppedError(Exception):
    """The task that waits for the thread was cancelled."""


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """The result of `work(stop)`, run in a thread. On cancel `stop` is set and the thread has ended."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        while not task.done():
            await asyncio.wait([task])
        raise


def _pack(
    tar: Path, built: Path, config: ImageConfig, *, name: str, digest: str, agent: bytes, stop: threading.Event
) -> Image:
    """`built` holds kernel, initramfs and record, made of the tar."""

    def check(_fraction: float = 0.0) -> None:
        if stop.is_set():
            raise _StoppedError

    return _write_image(tar, built, config, name=name, digest=digest, agent=agent, check=check)


def _write_image(
    tar: Path, built: Path, config: ImageConfig, *, name: str, digest: str, agent: bytes, check: Callable[[float], None]
) -> Image:
    kernel_path, initramfs_path = built / KERNEL_NAME, built / INITRAMFS_NAME
    with tar.open("rb") as source:
        unpacked = rootfs.read_tar(source, check)
        kernel = rootfs.read_kernel(unpacked.kernel)
        rootfs.finish_tree(unpacked, agent, kernel.release)
        kernel_path.write_bytes(kernel.image)
        with initramfs_path.open("wb") as file, lz4.LegacyWriter(file) as packer:
            unpacked.tree.write(packer, check)
            packer.finish()
        unpacked_bytes = unpacked.tree.measure()
        packages = rootfs.read_packages(unpacked.records)
    image = Image(
        name=name,
        digest=digest,
        kernel=kernel_path,
        initramfs=initramfs_path,
        kernel_release=kernel.release,
        kernel_sha256=hash_file(kernel_path),
        initramfs_sha256=hash_file(initramfs_path, lambda: check(1.0)),
        arch=recipe.ARCH,
        suite=config.suite,
        requested=config.packages,
        packages=packages,
        unpacked_bytes=unpacked_bytes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel_bytes=kernel_path.stat().st_size,
        initramfs_bytes=initramfs_path.stat().st_size,
        boot_modules=tuple(name for name, _ in recipe.BOOT_MODULES),
    )
    (built / RECORD_NAME).write_bytes(encode_record(image))
    return image
