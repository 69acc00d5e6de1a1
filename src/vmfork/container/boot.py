"""The seam: from a root tree to what a guest boots. Nothing behind it knows of layers.

`write_boot` takes a finished root and leaves kernel, initramfs and record in a folder, which the store takes; and the
disk where the root is large, or was asked to lie on one.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.container.additions import INIT
from vmfork.image import disk, lz4, recipe, rootfs
from vmfork.image.build import goes_on_disk
from vmfork.image.record import INITRAMFS_NAME, KERNEL_NAME, RECORD_NAME, Image, encode_record, name_content
from vmfork.image.store import hash_file
from vmfork.image.tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from vmfork.config.values import RootChoice
    from vmfork.container.additions import Kernel
    from vmfork.container.root import Root
    from vmfork.container.running import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A root and what boots it. `contents` has the files' contents; `recipe` names what all of it was made of.

    `digest` names what was at `source`. `lies` says where its guest has the root, as `ImageConfig.root` does.
    """

    root: Root
    lies: RootChoice
    agent: bytes
    contents: IO[bytes]
    kernel: Kernel
    running: Running
    source: str
    digest: str
    recipe: str


def write_boot(boot: Boot, built: Path, *, name: str, check: Callable[[float], None]) -> Image:
    """`built` holds kernel, initramfs and record, and the disk where its root lies on one.

    `check(fraction)` is called often, and may raise to end it.
    """
    kernel_path, initramfs_path, disk_path = built / KERNEL_NAME, built / INITRAMFS_NAME, built / disk.NAME
    tree = boots = make_tree(boot.root, boot.contents)
    kernel_path.write_bytes(boot.kernel.image)
    if goes_on_disk(boot.lies, tree.measure()):
        kernel = boot.kernel
        boots = rootfs.split_off(tree, boot.agent, kernel.release, kernel.files, kernel.files.__getitem__)
        disk.write_disk(tree, disk_path, check)
    with initramfs_path.open("wb") as file, lz4.LegacyWriter(file) as packer:
        boots.write(packer, check)
        packer.finish()
    kernel_sha256, initramfs_sha256 = hash_file(kernel_path), hash_file(initramfs_path, lambda: check(1.0))
    disk_sha256 = hash_file(disk_path, lambda: check(1.0)) if disk_path.exists() else ""
    running = boot.running
    image = Image(
        name=name,
        digest=name_content(kernel_sha256, initramfs_sha256, disk_sha256),
        kernel=kernel_path,
        initramfs=initramfs_path,
        kernel_release=boot.kernel.release,
        kernel_sha256=kernel_sha256,
        initramfs_sha256=initramfs_sha256,
        arch=recipe.ARCH,
        recipe=boot.recipe,
        suite="",
        requested=(),
        bare=False,
        packages={},
        unpacked_bytes=boots.measure(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel_bytes=kernel_path.stat().st_size,
        initramfs_bytes=initramfs_path.stat().st_size,
        boot_modules=recipe.list_boot_modules(),
        root=boot.lies,
        disk_sha256=disk_sha256,
        disk_bytes=disk_path.stat().st_size if disk_sha256 else 0,
        init=INIT,
        source=boot.source,
        source_digest=boot.digest,
        environment=running.env,
        working_dir=running.cwd,
        user=running.user,
        entrypoint=running.entrypoint,
        command=running.command,
    )
    (built / RECORD_NAME).write_bytes(encode_record(image))
    return image


def make_tree(root: Root, contents: IO[bytes]) -> Tree:
    """The root as the tree that an initramfs is written of."""
    tree = Tree(contents)  # type: ignore[arg-type]
    names: dict[int, list[str]] = {}
    paths = list(root.walk())
    for path, inode in paths:
        if not inode.is_folder:
            names.setdefault(id(inode), []).append(path)
    for path, inode in paths:
        body = inode.target.encode("utf-8", "surrogateescape") if stat.S_ISLNK(inode.mode) else inode.content or b""
        several = names.get(id(inode), ())
        node = Node(
            inode.mode,
            body,
            inode.mtime,
            several[0] if len(several) > 1 else "",
            inode.uid,
            inode.gid,
            inode.device,
        )
        tree.add_node(path, node)
    return tree
