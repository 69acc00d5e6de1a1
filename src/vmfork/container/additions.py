"""What a root needs to be a guest: agent, kernel modules, the Python module, and folders that every guest has.

What the image has itself stays as it is: only paths of ours (`usr/lib/vmfork`, `etc/vmfork`) and missing ones are made.
Kernel and modules are those of an image that was built of Debian's packages, because no container image has any.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.container.command import DEFAULTS, encode_command
from vmfork.container.command import PATH as COMMAND
from vmfork.container.root import Inode, PathError
from vmfork.errors import ArtifactError, ImageCorrupt, ImageError
from vmfork.image import cpio, disk, lz4, recipe, rootfs

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.container.layer import Contents
    from vmfork.container.root import Root
    from vmfork.container.running import Running
    from vmfork.image import DiskStore, Image

INIT = f"/{recipe.AGENT_PATH}"
# Read by the agent: guest/defaults.c draws it.
ATTRIBUTES = "etc/vmfork/attributes"
# Raised with every change that changes what is added.
VERSION = 3
_SITE = re.compile(r"usr/(local/)?lib/python3\.\d+/site-packages")
_MODULE = "vmfork_guest.py"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The bootable file, its release, and what its guest needs of it: path -> content."""

    image: bytes
    release: str
    files: dict[str, bytes]


def read_kernel(image: Image, disks: DiskStore, work: Path) -> Kernel:
    """The kernel of that image, with its modules and what is loaded of them where a root lies in memory.

    They are where its own root is: in the initramfs, or on a disk, whose initramfs has only what finds it. Of a disk
    they lie in `work` meanwhile. Raises `ImageError` when one cannot be read or is missing, and `HostError` without the
    program that reads a disk.
    """
    home = f"usr/lib/modules/{image.kernel_release}"
    try:
        if image.disk_sha256:
            with disks.opened(image.disk_sha256, image=image.name):
                files = disk.read_files(disks.locate(image.disk_sha256), home, work)
        else:
            entries = cpio.read_entries(lz4.decompress(image.initramfs.read_bytes()))
            files = {name: body for name, mode, body in entries if stat.S_ISREG(mode) and name.startswith(f"{home}/")}
        files |= rootfs.list_loaded(files, image.kernel_release)
    except ImageCorrupt:
        raise
    except (ValueError, ImageError) as error:
        raise ImageError(
            f"the kernel of image {image.name!r} cannot be read: {error}",
            hint=f"build it anew: vmfork image build {image.name} --rebuild",
            log=getattr(error, "log", ""),
        ) from error
    return Kernel(image.kernel.read_bytes(), image.kernel_release, files)


class Additions:
    """Adds to `root`, above all its layers. `source` is what is told of where it is from."""

    def __init__(self, root: Root, contents: Contents, layer: int, *, source: str) -> None:
        self._source = source
        self._root = root
        self._contents = contents
        self._layer = layer

    def add_all(self, agent: bytes, kernel: Kernel, running: Running) -> None:
        """The root is a guest's. Raises `ArtifactError`, naming the path, where the image has no folder for it."""
        try:
            self._add_folders()
            for path, text in recipe.FILES:
                self._add_missing(path, text.encode())
            for path, body in kernel.files.items():
                self._add(path, body)
            self._add_module_link(kernel.release)
            self._add(recipe.AGENT_PATH, agent, 0o755)
            self._add_python()
            self._add(DEFAULTS, encode_defaults(running))
            self._add(COMMAND, encode_command(running.entrypoint, running.command))
            self._add(ATTRIBUTES, encode_attributes(self._root))
        except PathError as error:
            hint = "give an image in which that is a folder, or a symbolic link to one"
            reason = f"it has no place for what its guest needs: {error}"
            raise ArtifactError(self._source, reason, hint=hint) from error

    def _add_folders(self) -> None:
        for path, mode in recipe.FOLDERS:
            if self._root.find([path]) is None:
                made = self._root.make_folder([path], self._layer)
                made.mode, made.mtime = stat.S_IFDIR | mode, recipe.EPOCH

    def _add_module_link(self, release: str) -> None:
        """modprobe(8) of an image that has `/lib` beside `/usr/lib` finds the modules."""
        if self._root.find(["lib", "modules", release]) is None:
            link = Inode(stat.S_IFLNK | 0o777, mtime=recipe.EPOCH, target=f"/usr/lib/modules/{release}")
            self._root.put(["lib", "modules", release], link, self._layer)

    def _add_python(self) -> None:
        """Each Python that the image has finds the module."""
        body = recipe.read_guest_module()
        if self._root.find(recipe.PYTHON.split("/")) is not None:
            self._add_missing(recipe.GUEST_MODULE, body)
        folders = [path for path, inode in self._root.walk() if inode.is_folder and _SITE.fullmatch(path)]
        for path in folders:
            self._add_missing(f"{path}/{_MODULE}", body)

    def _add_missing(self, path: str, body: bytes) -> None:
        *folders, name = path.split("/")
        folder = self._root.find(folders)
        if folder is None or name not in folder.entries:
            self._add(path, body)

    def _add(self, path: str, body: bytes, mode: int = 0o644) -> None:
        place = self._contents.take(len(body))
        self._contents.write(place, 0, body)
        inode = Inode(stat.S_IFREG | mode, mtime=recipe.EPOCH, content=place)
        try:
            self._root.put(path.split("/"), inode, self._layer)
        except PathError as error:
            raise PathError(f"/{path}: {error}") from error


def encode_defaults(running: Running) -> bytes:
    """Folder, user, then variables, each with a NUL behind it."""
    lines = [running.cwd, running.user, *(f"{name}={value}" for name, value in running.env.items())]
    return b"".join(line.encode("utf-8", "surrogateescape") + b"\0" for line in lines)


def encode_attributes(root: Root) -> bytes:
    """Path, name and value in hex of each attribute of a file, each with a NUL behind it: no initramfs has any."""
    lines = [
        (f"/{path}", name, value.hex())
        for path, inode in root.walk()
        if not stat.S_ISLNK(inode.mode)
        for name, value in sorted(inode.xattrs.items())
    ]
    return b"".join(part.encode("utf-8", "surrogateescape") + b"\0" for line in lines for part in line)
