"""What a test host boots: a release's kernel, a small initramfs of ours, and its root file system as a disk.

```
inside/init  loads what the disk needs, mounts it, and goes over to it
inside/host  process 1 there: takes the job, runs it, sends back what it left
```
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import stat
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cache
from hosts.root import open_root
from vmfork.image import cpio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Whatever runs there needs QEMU, Python, for disks `e2fsprogs` and for cards `passt`; `procps` is for tests,
# `python3-venv` for hosts/python.py, `libstdc++6` for gRPC, whose wheel brings no C++ library.
_PACKAGES = ("busybox-static", "e2fsprogs", "libstdc++6", "mount", "passt", "procps", "python3-venv", "qemu-system-x86")
_KERNEL = "linux-image-amd64"

_INSIDE = Path(__file__).with_name("inside")
# Some kernels have a part of it built in. ext4 asks for crc32c by its name in the crypto layer, which no list of
# dependencies shows.
_MODULES = ("crc32c_generic", "ext4", "virtio_pci", "virtio_blk", "virtio_console")
# For what programs write. The file has holes: only what is written takes space.
_SPARE_MIB = 1024


@dataclass(frozen=True, slots=True)
class Disk:
    """The files of a test host, for reading. `root` is what is on the disk."""

    root: Path
    kernel: Path
    initramfs: Path
    disk: Path


@contextmanager
def open_disk(release: str) -> Iterator[Disk]:
    """In the block the files of a host of that Debian release are there, made within the last week."""
    made_by = [path.read_text() for path in (Path(__file__), *sorted(_INSIDE.iterdir()))]
    with open_root(release, _PACKAGES, kernel=_KERNEL) as root:

        def make(folder: Path) -> None:
            _fill(folder, root)

        packages = (root.parent / "packages").read_text()
        with cache.open_kept(f"{root.parent.name}-disk", [packages, made_by], make) as folder:
            yield Disk(root, folder / "kernel", folder / "initramfs", folder / "disk")


def _fill(folder: Path, root: Path) -> None:
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, folder / "kernel")
    modules = root / "usr/lib/modules" / kernel.name.removeprefix("vmlinuz-")
    (folder / "initramfs").write_bytes(_pack_initramfs(root, list_modules(modules)))
    _make_file_system(folder / "disk", root)


def _make_file_system(disk: Path, root: Path) -> None:
    used = subprocess.run(["du", "-sm", root], capture_output=True, text=True, check=True).stdout.split()[0]
    # No journal: nobody reads the disk of a host that died.
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0,lazy_itable_init=1"]
    argv += ["-d", str(root), str(disk), f"{int(used) + _SPARE_MIB}M"]
    # An ordinary user's PATH leaves out where it is.
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})


def _pack_initramfs(root: Path, modules: Sequence[Path]) -> bytes:
    archive = io.BytesIO()
    writer = cpio.Writer(archive)
    for name in ("bin", "dev", "modules", "root"):
        writer.add(name, stat.S_IFDIR | 0o755)
    writer.add("bin/busybox", stat.S_IFREG | 0o755, (root / "usr/bin/busybox").read_bytes())
    writer.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    for script in _INSIDE.iterdir():
        writer.add(script.name, stat.S_IFREG | 0o755, script.read_bytes())
    for number, module in enumerate(modules):
        content = module.read_bytes()
        # busybox gives the kernel a module as it is.
        whole = lzma.decompress(content) if module.suffix == ".xz" else content
        writer.add(f"modules/{number:02}.ko", stat.S_IFREG | 0o644, whole)
    writer.finish()
    return archive.getvalue()


def list_modules(modules: Path) -> list[Path]:
    """The files of our modules and of those they need, in an order in which they can be loaded."""
    lines = (modules / "modules.dep").read_text().splitlines()
    needs = {path: needed.split() for path, needed in (line.split(":") for line in lines)}
    paths = {re.sub(r"\.ko.*", "", Path(path).name): path for path in needs}
    # One that is not listed is built into this kernel. depmod lists what a module needs with the deepest need last.
    wanted = [paths[name] for name in _MODULES if name in paths]
    order = [needed for path in wanted for needed in (*reversed(needs[path]), path)]
    return [modules / path for path in dict.fromkeys(order)]
