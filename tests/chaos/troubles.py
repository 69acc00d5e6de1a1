"""A host that is full, or short of something: each gives what the actor is run with. `None` where this host cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.agents import copy_default_image
from vmfork.config import Places, find_places
from vmfork.host.group import remove_groups
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from random import Random

# Lives that are tried under each; between them they touch all that a host can refuse.
_LIVES = ("fork", "exec", "hand-over", "build", "replace")


@dataclass(frozen=True)
class Troubled:
    """How the actor is run: `prefix` before its command, `environ` over ours, `descriptors` as it may have open."""

    amount: str
    prefix: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    descriptors: int = 0


@contextmanager
def descriptors(random: Random) -> Iterator[Troubled | None]:
    most = random.randint(6, 40)
    yield Troubled(f"{most} descriptors", descriptors=most)


@contextmanager
def processes(random: Random) -> Iterator[Troubled | None]:
    most = random.randint(2, 14)
    with _group("pids", "pids.max", str(most)) as prefix:
        yield Troubled(f"{most} processes and threads", prefix=prefix) if prefix else None


@contextmanager
def memory(random: Random) -> Iterator[Troubled | None]:
    most = random.randint(60, 300)
    with _group("memory", "memory.limit_in_bytes", str(most * MIB)) as prefix:
        yield Troubled(f"{most} MiB of memory", prefix=prefix) if prefix else None


@contextmanager
def full_home(random: Random) -> Iterator[Troubled | None]:
    """HOME is a small disk with the image on it, and next to nothing free."""
    free = random.choice((0, 4, 64)) * 1024
    with _small_disk(find_places().home / "images", free=free) as folder:
        if folder is None:
            yield None
            return
        copy_default_image(find_places(), Places(home=folder, runtime=folder).images)
        _fill(folder, free)
        yield Troubled(f"{free >> 10} KiB free in HOME", environ={"VMFORK_HOME": str(folder)})


@contextmanager
def full_runtime(random: Random) -> Iterator[Troubled | None]:
    """The file system of records, locks and sockets has next to nothing free, where it is one of the driver's own."""
    free, folder = random.choice((0, 4, 64)) * 1024, find_places().runtime
    if not folder.is_mount():
        yield None
        return
    ballast = _fill(folder, free)
    try:
        yield Troubled(f"{free >> 10} KiB free in the runtime folder")
    finally:
        ballast.unlink()


TROUBLES = {
    "descriptors": (descriptors, _LIVES),
    "processes": (processes, _LIVES),
    "memory": (memory, _LIVES),
    "full-home": (full_home, ("build", "replace", "fork")),
    "full-runtime": (full_runtime, _LIVES),
}


@contextmanager
def _group(controller: str, file: str, limit: str) -> Iterator[tuple[str, ...]]:
    """Before a command, it runs in a control group with that limit; empty where none can be made."""
    group = Path("/sys/fs/cgroup", controller, f"vmfork-chaos-{os.getpid()}")
    try:
        group.mkdir()
        (group / file).write_text(limit)
    except OSError:
        yield ()
        return
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        remove_groups([str(group)])  # the last process leaves it a moment after its end was told


@contextmanager
def _small_disk(like: Path, *, free: int) -> Iterator[Path | None]:
    """A tmpfs with room for what is in `like`, for as much as vmfork keeps there besides, and for `free` bytes."""
    folder = Path(tempfile.mkdtemp(prefix="vmfork-chaos-home-"))
    used = sum(path.stat().st_size for path in like.rglob("*") if path.is_file() and not path.is_symlink())
    size = used + free + 8 * MIB
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "vmfork-chaos", str(folder)], check=False
        ).returncode
    )
    try:
        yield folder if made else None
    finally:
        if made:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def _fill(folder: Path, free: int) -> Path:
    """The file whose size leaves `free` bytes in the file system of that folder."""
    have, ballast = os.statvfs(folder), folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(have.f_bavail * have.f_frsize - free, 1))
    return ballast
