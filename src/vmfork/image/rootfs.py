"""Makes a guest's file system of mmdebstrap's tar: what a guest needs, and what maintainer scripts would have made."""

from __future__ import annotations

import posixpath
import re
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from vmfork.errors import ImageError
from vmfork.image import debootstrap, modules, recipe
from vmfork.image.alternatives import link_alternatives
from vmfork.image.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

_CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_CA_FOLDER = "usr/share/ca-certificates/"
_KERNEL_FILE = re.compile(r"boot/vmlinuz-(.+)")
# Days since 1970 of a password's last change, in shadow(5): any day will do, since no password is set.
_SHADOW = "{}:*:20000:0:99999:7:::"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The tar, sorted: the guest's files, what the packages say of themselves, the kernel package's files."""

    tree: Tree
    records: Tree
    kernel: Tree


@dataclass(frozen=True, slots=True)
class Kernel:
    """`image` is the bootable file, `release` what `uname -r` says in the guest."""

    image: bytes
    release: str


def read_tar(file: BinaryIO, check: Callable[[float], None]) -> Unpacked:
    """The contents of the uncompressed tar in `file`, without what the recipe drops; bodies stay in the file."""
    tree, records, kernel = Tree(file), Tree(file), Tree(file)
    # Longest first: a path belongs to the first that it starts with.
    places = ((debootstrap.CONTROL + "/", records), (debootstrap.KERNEL + "/", kernel), ("", tree))
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            check(0.0)
            path = posixpath.normpath(member.name)
            prefix, place = next((prefix, place) for prefix, place in places if path.startswith(prefix))
            if place is tree and (path.startswith(".") or recipe.is_dropped(path)):
                continue
            place.add_member(path.removeprefix(prefix), member)
    return Unpacked(tree, records, kernel)


def read_packages(records: Tree) -> dict[str, str]:
    """Package names -> versions, sorted by name."""
    packages = {}
    for path in records:
        if path.endswith("/control"):
            text = records.read(path).decode()
            fields = dict(re.findall(r"^(Package|Version): *(\S+)", text, re.MULTILINE))
            packages[fields["Package"]] = fields["Version"]
    return dict(sorted(packages.items()))


def read_kernel(kernel: Tree) -> Kernel:
    """The kernel of the package; `ImageError` when there is not exactly one."""
    found = [match for path in kernel if (match := _KERNEL_FILE.fullmatch(path))]
    if len(found) != 1:
        raise ImageError(f"the kernel package holds {len(found)} kernels, one was expected")
    return Kernel(kernel.read(found[0][0]), found[0][1])


def finish_tree(unpacked: Unpacked, agent: bytes, release: str) -> None:
    """The tree boots: folders, accounts, links, certificates, kernel modules, agent, Python module are in place."""
    tree = unpacked.tree
    _add_folders(tree)
    _add_links(tree)
    _add_files(tree)
    _add_shadow(tree)
    _add_certificates(tree)
    link_alternatives(tree, _read_scripts(unpacked.records))
    _add_modules(tree, unpacked.kernel, release)
    _add_agent(tree, agent)
    _add_shipped(tree)


def _add_folders(tree: Tree) -> None:
    for path, mode in recipe.FOLDERS:
        tree.add_folder(path, mode)


def _add_links(tree: Tree) -> None:
    for path, target in recipe.LINKS:
        if path not in tree:
            tree.add_link(path, target)


def _add_files(tree: Tree) -> None:
    for source, path in recipe.COPIES:
        if path not in tree and source in tree:
            tree.add_file(path, tree.read(source))
    for path, text in recipe.FILES:
        tree.add_file(path, text.encode())
    if "usr/bin/bash" not in tree:
        accounts = tree.read("etc/passwd").replace(b":/bin/bash", b":/bin/sh")
        tree.add_file("etc/passwd", accounts)


def _add_shadow(tree: Tree) -> None:
    for source, path, line in (
        ("etc/passwd", "etc/shadow", _SHADOW),
        ("etc/group", "etc/gshadow", "{}:*::"),
    ):
        if path not in tree:
            names = [entry.split(":")[0] for entry in tree.read(source).decode().splitlines()]
            tree.add_file(path, "".join(line.format(name) + "\n" for name in names).encode(), 0o640)


def _add_certificates(tree: Tree) -> None:
    if _CA_BUNDLE in tree:
        return
    certificates = {path: tree.read(path) for path in tree if path.startswith(_CA_FOLDER) and path.endswith(".crt")}
    if certificates:
        # Each takes a page of memory and only served to make the bundle.
        for path in certificates:
            tree.remove(path)
        tree.add_file(_CA_BUNDLE, b"".join(text.rstrip(b"\n") + b"\n" for text in certificates.values()))


def _read_scripts(records: Tree) -> list[str]:
    return [records.read(path).decode(errors="replace") for path in records if path.endswith("/postinst")]


def _add_modules(tree: Tree, kernel: Tree, release: str) -> None:
    home = f"usr/lib/modules/{release}"
    index = modules.index_modules(path for path in kernel if f"lib/modules/{release}/" in path)
    bodies, needs = modules.select_modules(recipe.MODULES, index, kernel.read)
    places = {name: "kernel/" + index[name].partition("/kernel/")[2].removesuffix(".xz") for name in bodies}
    for name, body in bodies.items():
        tree.add_file(f"{home}/{places[name]}", body)
    # modprobe(8) reads this text where the binary index is missing, which depmod(8) in the guest can make.
    lines = (
        f"{places[name]}: {' '.join(places[need] for need in reversed(modules.order_modules([name], needs)[:-1]))}"
        for name in bodies
    )
    tree.add_file(f"{home}/modules.dep", "".join(line.rstrip() + "\n" for line in lines).encode())
    boot = (
        f"/{home}/{places[name]} {device}\n"
        for wanted, device in recipe.BOOT_MODULES
        for name in modules.order_modules([wanted], needs)
    )
    tree.add_file(recipe.MODULES_LIST, "".join(boot).encode())
    for listing in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        source = next((path for path in kernel if path.endswith(f"/{release}/{listing}")), None)
        if source:
            tree.add_file(f"{home}/{listing}", kernel.read(source))


def _add_agent(tree: Tree, agent: bytes) -> None:
    tree.add_file(recipe.AGENT_PATH, agent, 0o755)
    tree.add_link("init", recipe.AGENT_PATH)


def _add_shipped(tree: Tree) -> None:
    for source, path, mode, needed in recipe.SHIPPED:
        if not needed or needed in tree:
            tree.add_file(path, recipe.read_shipped(source), mode)
