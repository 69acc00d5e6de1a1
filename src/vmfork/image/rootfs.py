"""Makes a guest's file system of mmdebstrap's tar: what a guest needs, at the same date in every build."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from vmfork.errors import ImageError
from vmfork.image import accounts, debootstrap, disk, dropped, keystore, modules, packages, recipe
from vmfork.image.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_KERNEL = "kernel/"
_KERNEL_FILE = re.compile(r"boot/vmlinuz-(.+)")
# What the kernel's build says of all its modules.
_LISTINGS = ("modules.builtin", "modules.builtin.modinfo", "modules.order")
_BASH = "usr/bin/bash"
_SCRATCH = tuple(name for name, _ in recipe.SCRATCH_MODULES)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The tar, sorted: the guest's files, what was told of them, the kernel package's files."""

    tree: Tree
    told: Tree
    kernel: Tree


@dataclass(frozen=True, slots=True)
class Kernel:
    """`image` is the bootable file, `release` what `uname -r` says in the guest."""

    image: bytes
    release: str


def read_tar(file: BinaryIO, check: Callable[[float], None], *, started_at: int) -> Unpacked:
    """The contents of the uncompressed tar in `file`; bodies stay in the file.

    A file that is newer than `started_at` (seconds since 1970) was made by the build, and gets the recipe's date.
    """
    tree, told, kernel = (Tree(file, mtime=recipe.EPOCH) for _ in range(3))
    # Longest first: a path belongs to the first that it starts with.
    places = ((f"{debootstrap.TOLD}/{_KERNEL}", kernel), (f"{debootstrap.TOLD}/", told), ("", tree))
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            check(0.0)
            path = posixpath.normpath(member.name)
            if path in (".", debootstrap.TOLD):
                continue
            if member.mtime >= started_at:
                member.mtime = recipe.EPOCH
            prefix, place = next((prefix, place) for prefix, place in places if path.startswith(prefix))
            place.add_member(path.removeprefix(prefix), member)
    _set_owners(tree, told)
    return Unpacked(tree, told, kernel)


def _set_owners(tree: Tree, told: Tree) -> None:
    if "owners" not in told:
        return
    for entry in told.read("owners").decode("utf-8", "surrogateescape").split("\0"):
        mode, uid, gid, path = entry.split(" ", 3) if entry else ("", "", "", "")
        if path in tree:
            tree.own(path, mode=int(mode, 8), uid=int(uid), gid=int(gid))


def read_packages(told: Tree, *, slim: bool) -> dict[str, str]:
    """The packages of the image and its kernel: names -> versions, sorted by name."""
    versions = packages.read_versions(told.read("installed"))
    if slim:
        needed = set(told.read("needed").decode().split())
        versions = {name: version for name, version in versions.items() if name in needed}
    return dict(sorted((versions | packages.read_versions(told.read("kernel-package"))).items()))


def read_kernel(kernel: Tree) -> Kernel:
    """The kernel of the package. Raises `ImageError` when there is not exactly one."""
    found = [match for path in kernel if (match := _KERNEL_FILE.fullmatch(path))]
    if len(found) != 1:
        raise ImageError(f"the kernel package holds {len(found)} kernels, one was expected")
    return Kernel(kernel.read(found[0][0]), found[0][1])


def drop(unpacked: Unpacked, *, slim: bool) -> None:
    """What the tables keep out is gone, and links to it. With `slim`, so is what only unneeded packages brought."""
    tree, told = unpacked.tree, unpacked.told
    _remove(tree, [path for path in tree if dropped.is_covered(path)], set())
    gone: set[str] = set()
    if slim:
        needed = told.read("needed").decode().split()
        unneeded = packages.find_unneeded(tree, packages.read_versions(told.read("installed")), needed)
        _remove(tree, _without_full_folders(tree, unneeded), gone)
    _remove(tree, [path for path in tree if dropped.is_dropped(path, slim=slim)], gone)
    while dangling := [path for path in tree.list_links() if tree.follow(path) in gone]:
        _remove(tree, dangling, gone)


def _without_full_folders(tree: Tree, paths: Iterable[str]) -> list[str]:
    """Those of `paths` (children before parents) below which nothing else is."""
    inside = Counter(posixpath.dirname(path) for path in tree)
    found = []
    for path in paths:
        if not inside[path]:
            inside[posixpath.dirname(path)] -= 1
            found.append(path)
    return found


def _remove(tree: Tree, paths: Iterable[str], gone: set[str]) -> None:
    for path in paths:
        tree.remove(path)
        gone.add(path)


def finish_tree(unpacked: Unpacked, agent: bytes, release: str) -> None:
    """The tree boots: folders, names, kernel modules, agent, Python module are in place."""
    tree = unpacked.tree
    _add_folders(tree)
    _add_files(tree)
    _date_keystore(tree)
    _add_modules(tree, unpacked.kernel, release)
    _add_agent(tree, agent)
    _add_shipped(tree)


def _add_folders(tree: Tree) -> None:
    for path, mode in recipe.FOLDERS:
        tree.add_folder(path, mode)


def _add_files(tree: Tree) -> None:
    for path, text in recipe.FILES:
        tree.add_file(path, text.encode())
    for path, target in recipe.LINKS:
        if path not in tree:
            tree.add_link(path, target)
    if _BASH not in tree:
        tree.add_file("etc/passwd", tree.read("etc/passwd").replace(b":/bin/bash", b":/bin/sh"))
    accounts.add_shadow_files(tree, changed_at=recipe.EPOCH)


def _date_keystore(tree: Tree) -> None:
    if keystore.PATH in tree:
        tree.add_file(keystore.PATH, keystore.set_times(tree.read(keystore.PATH), recipe.EPOCH))


def _add_modules(tree: Tree, kernel: Tree, release: str) -> None:
    home = f"usr/lib/modules/{release}"
    listings = {name: _find_listing(kernel, release, name) for name in _LISTINGS}
    index = modules.index_modules(path for path in kernel if f"lib/modules/{release}/" in path)
    built_in = _list_built_in(listings["modules.builtin"])
    bodies, needs = modules.select_modules([*recipe.MODULES, *_SCRATCH], index, kernel.read, built_in)
    order = {modules.name_of(line): number for number, line in enumerate(listings["modules.order"].decode().split())}
    bodies = dict(sorted(bodies.items(), key=lambda entry: order.get(entry[0], len(order))))
    places = {name: "kernel/" + index[name].partition("/kernel/")[2].removesuffix(".xz") for name in bodies}
    files = {places[name]: body for name, body in bodies.items()}
    files |= listings | modules.index_dependencies(places, needs)
    files |= {"modules.alias.bin": modules.index_aliases(bodies)}
    files |= modules.index_builtin(listings["modules.builtin"], listings["modules.builtin.modinfo"])
    for name, body in files.items():
        tree.add_file(f"{home}/{name}", body)
    places = {name: f"{home}/{place}" for name, place in places.items()}
    for path, body in _make_lists(places, needs).items():
        tree.add_file(path, body)


def list_loaded(files: Mapping[str, bytes], release: str) -> dict[str, bytes]:
    """What the agent loads at boot of an image that has these files of its kernel: paths -> contents.

    Raises `ImageError`, naming the first module that an image has and that is not among them.
    """
    index = modules.index_modules(files)
    built_in = _list_built_in(files.get(f"usr/lib/modules/{release}/modules.builtin", b""))
    bodies, needs = modules.select_modules([*recipe.MODULES, *_SCRATCH], index, files.__getitem__, built_in)
    return _make_lists({name: index[name] for name in bodies}, needs)


def _list_built_in(listing: bytes) -> frozenset[str]:
    """The modules that need not be files."""
    return modules.list_built_in(listing) | {*recipe.MAY_LACK}


def _make_lists(places: Mapping[str, str], needs: Mapping[str, list[str]]) -> dict[str, bytes]:
    return {
        recipe.MODULES_LIST: _list_boot(recipe.BOOT_MODULES, places, needs),
        recipe.SCRATCH_LIST: _list_boot(recipe.SCRATCH_MODULES, places, needs),
    }


def _list_boot(wanted: Iterable[tuple[str, str]], places: Mapping[str, str], needs: Mapping[str, list[str]]) -> bytes:
    """What the agent loads at boot: paths of modules, each behind those that it needs, and of their devices."""
    boot = ((places[name], device) for each, device in wanted for name in modules.order_modules([each], needs))
    return "".join(f"/{path} {device}".rstrip() + "\n" for path, device in boot).encode()


def split(unpacked: Unpacked, agent: bytes, release: str) -> Tree:
    """The finished tree is that of a disk; what boots from memory and finds it there is given."""
    kernel = unpacked.kernel
    paths = [path for path in kernel if f"lib/modules/{release}/" in path]
    boot = split_off(unpacked.tree, agent, release, paths, kernel.read)
    boot.add_link("init", recipe.AGENT_PATH)
    return boot


def split_off(tree: Tree, agent: bytes, release: str, paths: Iterable[str], read: Callable[[str], bytes]) -> Tree:
    """As `split`, of any tree. `read` gives modules of the kernel by their `paths`. Its first program is the agent."""
    boot = tree.like()
    for path, mode in recipe.FOLDERS:
        boot.add_folder(path, mode)
    home = f"usr/lib/modules/{release}"
    paths = list(paths)
    index = modules.index_modules(paths)
    listing = next((path for path in paths if path.endswith(f"/{release}/modules.builtin")), None)
    built_in = _list_built_in(read(listing) if listing else b"")
    needed = [*recipe.DISK_BOOT_MODULES, *recipe.DISK_LATE_MODULES]
    bodies, needs = modules.select_modules((name for name, _ in needed), index, read, built_in)
    places = {name: f"{home}/kernel/" + index[name].partition("/kernel/")[2].removesuffix(".xz") for name in bodies}
    for name in modules.order_modules((name for name, _ in recipe.DISK_BOOT_MODULES), needs):
        boot.add_file(places[name], bodies[name])
    boot.add_file(recipe.MODULES_LIST, _list_boot(recipe.DISK_BOOT_MODULES, places, needs))
    folder, name = posixpath.split(recipe.MODULES_LIST)
    # An image's /etc may be a symbolic link, as Android's is.
    tree.add_file(f"{tree.resolve(folder) or folder}/{name}", _list_boot(recipe.DISK_LATE_MODULES, places, needs))
    boot.add_file(recipe.ROOT_TOLD, f"{disk.FILE_SYSTEM}\n".encode())
    boot.add_file(recipe.AGENT_PATH, agent, 0o755)
    return boot


def _find_listing(kernel: Tree, release: str, name: str) -> bytes:
    found = next((path for path in kernel if path.endswith(f"/{release}/{name}")), None)
    return kernel.read(found) if found else b""


def _add_agent(tree: Tree, agent: bytes) -> None:
    tree.add_file(recipe.AGENT_PATH, agent, 0o755)
    tree.add_link("init", recipe.AGENT_PATH)


def _add_shipped(tree: Tree) -> None:
    for source, path, mode, needed in recipe.SHIPPED:
        if not needed or needed in tree:
            tree.add_file(path, recipe.read_shipped(source), mode)
