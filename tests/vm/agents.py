"""Images with another agent: the default image with one archive appended, which the kernel unpacks over the first."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.image import cpio, open_image, recipe, store
from vmfork.image.record import RECORD_NAME, encode_record

if TYPE_CHECKING:
    from vmfork.config import Places

GUEST = Path(__file__).parents[2] / "guest"
FAULTS = Path(__file__).parent / "faults" / "faults.c"
_COMPILER = (
    sys.executable,
    "-m",
    "ziglang",
    "cc",
    "-target",
    "x86_64-linux-musl",
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-Os",
)


def compile_faulty_agent(folder: Path) -> Path:
    """An agent whose host name and clock fail as /etc/fault asks."""
    harness = folder / "faults.o"
    subprocess.run([*_COMPILER, "-c", str(FAULTS), "-o", str(harness)], check=True)
    return _compile(
        folder / "faulty", harness, "-Dsethostname=faulty_sethostname", "-Dclock_settime=faulty_clock_settime"
    )


def compile_agent_of(folder: Path, protocol: int) -> Path:
    """The agent as it is, but that it speaks `protocol`."""
    return _compile(folder / f"protocol-{protocol}", f"-DPROTOCOL={protocol}")


def _compile(out: Path, *arguments: object) -> Path:
    sources = map(str, sorted(GUEST.glob("*.c")))
    subprocess.run([*_COMPILER, "-static", "-s", *sources, *map(str, arguments), "-o", str(out)], check=True)
    return out


def add_image(name: str, agent: Path, *, places: Places) -> None:
    """The default image under another name, with that agent in it."""
    base = open_image("default", images_dir=places.images)
    archive = io.BytesIO()
    writer = cpio.Writer(archive)
    writer.add(recipe.AGENT_PATH, stat.S_IFREG | 0o755, agent.read_bytes())
    writer.finish()
    with store.staging(places.images) as folder:
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
        store.commit(built, digest, images_dir=places.images)
    store.link_name(name, digest, images_dir=places.images)
