"""Roots on a disk beside roots in memory: images of three sizes, what they take to boot, to fork, and to be used.

Each size is Debian's least packages and as many bytes more as it takes, half of them random. Both roots of one size are
made of one tar, and run with the same memory: as much as the one in memory needs.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import tarfile
import threading
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Row, Samples, Target, at
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.api.vm import VM
from vmfork.config import ImageConfig, VMConfig
from vmfork.image import ImageStore, build, debootstrap, disk, recipe, rootfs, write_least
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.suite.context import Context
    from benchmarks.suite.figures import Side
    from vmfork.config.values import RootChoice

# MiB of files, and the memory that a guest with all of them in it needs while it boots.
_SIZES = {50: 256, 300: 1024, 1500: 4096}
_ROOTS: tuple[RootChoice, ...] = ("memory", "disk")
_PIECE_MIB = 4
# A program that nobody has read since the machine was booted: this much is read of it.
_UNREAD = "/ballast/20"


def _add_ballast(tar: Path, begin_mib: int, end_mib: int) -> None:
    """The tar holds so many MiB of files more, which compress to about the half, as programs do."""
    source = random.Random(end_mib)  # noqa: S311 - the same bytes each time
    with tarfile.open(tar, "a") as file:
        if begin_mib < min(_SIZES):
            folder = tarfile.TarInfo("./ballast")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            file.addfile(folder)
        for number in range(begin_mib // _PIECE_MIB, end_mib // _PIECE_MIB):
            body = b"".join(source.randbytes(2048) + bytes(2048) for _ in range(_PIECE_MIB * MIB // 4096))
            member = tarfile.TarInfo(f"./ballast/{number}")
            member.size, member.mode = len(body), 0o644
            path = tar.with_name("piece")
            path.write_bytes(body)
            with path.open("rb") as piece:
                file.addfile(member, piece)


async def _make_tar(folder: Path) -> Path:
    tmp = folder / "tmp"
    tmp.mkdir()
    tar = folder / "root.tar"
    packages = recipe.list_packages(ImageConfig(bare=True))
    await debootstrap.run_mmdebstrap(ImageConfig().suite, packages, tar, tmp=tmp, report=lambda _step, _part: None)
    return tar


def _pack(tar: Path, name: str, root: RootChoice, store: ImageStore, folder: Path) -> None:
    built = folder / name
    built.mkdir()
    source = build.Source(tar, ImageConfig(bare=True, root=root), recipe.find_agent().read_bytes(), started_at=1 << 40)
    image = build.pack(source, built, name=name, digest=name.ljust(64, "0"), stop=threading.Event())
    build.commit(store, built, image)
    store.link(name, image.digest)
    write_least(store.open(name).kernel.parent, 64, measured="not at all: the benchmark gives more than enough")


def _making(tar: Path, folder: Path) -> Mapping[str, Side]:
    """A file system made of the tar by us and by the bare tool, with the same options."""
    path = folder / "made"

    def by_us() -> float:
        with tar.open("rb") as file:
            unpacked = rootfs.read_tar(file, lambda _: None, started_at=1 << 40)
            begun = time.perf_counter()
            disk.write_disk(unpacked.tree, path, lambda _: None)
            took = time.perf_counter() - begun
        path.unlink()
        return took

    def bare() -> float:
        begun = time.perf_counter()
        with tar.open("rb") as file:
            subprocess.run(disk.build_argv(disk.find_sqfstar(), path), stdin=file, check=True)
        took = time.perf_counter() - begun
        path.unlink()
        return took

    return {"make": lambda: asyncio.to_thread(by_us), "make-bare": lambda: asyncio.to_thread(bare)}


def _using(template: Template, key: str, size: int) -> Side:
    async def use() -> dict[str, float]:
        begun = time.perf_counter()
        async with await template.fork() as vm:
            forked = time.perf_counter()
            await vm.exec(["true"], check=True)
            first = time.perf_counter()
            memory = vm.memory()
            read = time.perf_counter()
            if size > min(_SIZES):
                await vm.exec(["cksum", _UNREAD], check=True)
            done = time.perf_counter()
        return {
            at(f"fork-{key}", size): forked - begun,
            at(f"first-{key}", size): first - forked,
            at(f"private-{key}", size): memory.private,
            at(f"guest-{key}", size): memory.guest_private,
            at(f"unread-{key}", size): done - read,
        }

    return use


async def run(context: Context) -> Samples:
    samples, store = Samples(), ImageStore(context.places.images)
    disk.find_sqfstar()
    store.make()
    names, templates, sides = [], list[Template](), {}
    sizes = [50, 300] if context.quick else [*_SIZES]
    try:
        with store.staging() as folder:
            tar, has = await _make_tar(folder), 26
            for size in sizes:
                await asyncio.to_thread(_add_ballast, tar, has, size)
                has = size
                if size == 300:
                    await context.interleave(samples, _making(tar, folder), rounds=5, quick_rounds=3)
                for root in _ROOTS:
                    name = f"bench-{root}-{size}"
                    names.append(name)
                    context.report(f"making {name}")
                    await asyncio.to_thread(_pack, tar, name, root, store, folder)
        for size in sizes:
            for root in _ROOTS:
                config = VMConfig(image=f"bench-{root}-{size}", memory_mib=_SIZES[size])
                template = await Template.build(config.image, config, places=context.places)
                templates.append(template)
                manifest = template.manifest
                samples.add(at(f"in-use-{root}", size), manifest.memory_allocated_bytes)
                sides[at(root, size)] = _using(template, root, size)
                for _ in range(3):
                    begun = time.perf_counter()
                    async with await VM.boot(config, places=context.places):
                        samples.add(at(f"boot-{root}", size), time.perf_counter() - begun)
        async with AsyncExitStack() as beside:
            for template in templates:
                # What a fork shares with another is not its own; alone it would have the template's pages to itself.
                vm = await beside.enter_async_context(await template.fork())
                await vm.exec(["true"], check=True)
            await context.interleave(samples, sides, rounds=20, quick_rounds=3)
    finally:
        for name in names:
            store.remove(name)
    return samples


def _rows(size: int) -> tuple[Row, ...]:
    """What both roots of that size take, and one against the other."""
    figures = (
        ("boot", "s", 1.0, "boot to the first answer"),
        ("in-use", "MiB", 1 / MIB, "RAM of a template in use"),
        ("fork", "ms", 1000.0, "fork"),
        ("private", "MiB", 1 / MIB, "private memory of a fork beside another, after `true`"),
        ("guest", "MiB", 1 / MIB, "of that, guest RAM"),
        ("first", "ms", 1000.0, "first `true` of a fork"),
        ("unread", "ms", 1000.0, "4 MiB that nobody had read, in a fork"),
    )
    told = figures[:-1] if size == min(_SIZES) else figures
    return tuple(
        Row(
            key=f"disk.{key}-{root}-{size}",
            text=f"{text}: {size} MiB in {'memory' if root == 'memory' else 'a disk'}",
            kind="value",
            of=at(f"{key}-{root}", size),
            unit=unit,
            scale=scale,
        )
        for key, unit, scale, text in told
        for root in _ROOTS
    )


_FORK_BOUNDS = "A fork writes its identity through an overlay, whose code was never translated in it before."
_PRIVATE_BOUNDS = "QEMU has one device more, and what it translates for it; the guest has less of its own."
_GUEST_BOUNDS = (
    "What the first program reads was read before the freeze: nothing of the disk is in pages of the fork's own."
)
_MAKE_BOUNDS = "Heads of the tar are written anew in Python: a guest does without some of it. Files go by the kernel."


def _ratio(key: str, text: str, size: int, at_most: float, bounds: str) -> Row:
    return Row(
        key=f"disk.{key}-{size}",
        text=f"{text}, {size} MiB on a disk over {size} MiB in memory",
        kind="ratio",
        of=at(f"{key}-disk", size),
        to=at(f"{key}-memory", size),
        target=Target(at_most=at_most),
        bounds=bounds,
    )


MEASURE = Measure(
    name="disk",
    title="Roots on a disk",
    unit="s",
    run=run,
    budget_s=200.0,
    is_asked_for=True,
    rows=(
        *(row for size in _SIZES for row in _rows(size)),
        *(_ratio("fork", "fork", size, 1.1, _FORK_BOUNDS) for size in _SIZES),
        *(_ratio("private", "private memory of a fork", size, 1.0, _PRIVATE_BOUNDS) for size in _SIZES),
        *(_ratio("guest", "guest RAM of a fork's own", size, 1.0, _GUEST_BOUNDS) for size in _SIZES),
        Row(
            key="disk.make-raw",
            text="making the file system, 300 MiB, against `sqfstar` with the same options",
            kind="ratio",
            of="make",
            to="make-bare",
            target=Target(at_most=1.2),
            bounds=_MAKE_BOUNDS,
        ),
    ),
)
