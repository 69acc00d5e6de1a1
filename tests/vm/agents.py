"""Images with another agent: the default image with one archive appended, which the kernel unpacks over the first."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.image import ImageStore, cpio, recipe, write_least
from vmfork.image.record import RECORD_NAME, encode_record
from vmfork.units import MIB

if TYPE_CHECKING:
    from vmfork.config import Places

GUEST = Path(__file__).parents[2] / "guest"
FAULTS = Path(__file__).parent / "faults" / "faults.c"
# As tools/build.py has it, so that zig has compiled most of it before.
_COMPILER = (sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-static", "-Os", "-s")
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


def compile_faulty_agent(folder: Path) -> Path:
    """An agent whose host name and clock fail as its fork id asks."""
    harness = folder / "faults.o"
    subprocess.run([*_COMPILER, *_FLAGS, "-c", str(FAULTS), "-o", str(harness)], check=True)
    changed = ("-Dsethostname=faulty_sethostname", "-Dclock_settime=faulty_clock_settime")
    return _compile(folder / "faulty", *changed, where="sethostname|clock_settime", harness=harness)


def compile_agent_of(folder: Path, protocol: int) -> Path:
    """The agent as it is, but that it speaks `protocol`."""
    return _compile(folder / f"protocol-{protocol}", f"-DPROTOCOL={protocol}", where="version.h|PROTOCOL|CAPABILITIES")


def _compile(out: Path, *defines: str, where: str, harness: Path | None = None) -> Path:
    """`defines` are for the sources in which `where` is found; the others are those of every agent."""
    parts = [] if harness is None else [str(harness)]
    for source in sorted(GUEST.glob("*.c")):
        part = source
        if re.search(where, source.read_text()):
            part = out.with_name(f"{out.name}-{source.stem}.o")
            subprocess.run([*_COMPILER, *_FLAGS, *defines, "-c", str(source), "-o", str(part)], check=True)
        parts.append(str(part))
    subprocess.run([*_COMPILER, *_FLAGS, *parts, "-o", str(out)], check=True)
    return out


def add_image(name: str, agent: Path, *, places: Places) -> None:
    """The default image under another name, with that agent in it."""
    base = ImageStore(places.images).open("default")
    archive = io.BytesIO()
    writer = cpio.Writer(archive)
    writer.add(recipe.AGENT_PATH, stat.S_IFREG | 0o755, agent.read_bytes())
    writer.finish()
    with ImageStore(places.images).staging() as folder:
        built = folder / "image"
        built.mkdir()
        shutil.copyfile(base.kernel, built / "kernel")
        padding = bytes(-base.initramfs.stat().st_size % 512)
        content = base.initramfs.read_bytes() + padding + archive.getvalue()
        (built / "initramfs").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        image = replace(
            base, name=name, digest=digest, initramfs_sha256=digest, initramfs_bytes=len(content),
            kernel=places.images / digest / "kernel", initramfs=places.images / digest / "initramfs",
        )  # fmt: skip
        (built / RECORD_NAME).write_bytes(encode_record(image))
        if base.min_memory_mib is not None:  # not found by booting again: its files take that much more
            more = -(-2 * len(archive.getvalue()) // MIB)
            write_least(built, base.min_memory_mib + more, measured="that of the image it was made from, and its agent")
        ImageStore(places.images).commit(built, digest)
    ImageStore(places.images).link(name, digest)


def copy_default_image(places: Places, images: Path) -> None:
    """The image `default`, and nothing that another test makes or removes meanwhile, is below `images`."""
    image = ImageStore(places.images).open("default")
    shutil.copytree(image.kernel.parent, images / image.digest)
    for folder in ("names", "locks"):
        (images / folder).mkdir()
    (images / "names" / "default").symlink_to(Path("..", image.digest))
