"""Layers give the tree that umoci makes of them."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.images import Member, write_image
from tests.rules.capabilities import find_program
from tests.unit.container.conftest import apply_layers
from vmfork.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = ("a", "b", "c")
_MTIME = 1_600_000_000
_IS_ROOT = os.geteuid() == 0
_CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)

paths = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join)
targets = st.one_of(paths, paths.map("/".__add__), paths.map("../".__add__))
modes = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o4755, 0o1777, 0o2750])
# A user who is not root looks into no folder without the right to.
folder_modes = modes if _IS_ROOT else modes.filter(lambda mode: mode & 0o700 == 0o700)
owners = st.sampled_from([0, 7, 65_534] if _IS_ROOT else [0])


def _whiteout(path: str) -> str:
    above, _, name = path.rpartition("/")
    return f"{above}/.wh.{name}".lstrip("/")


def _can(make: Callable[[str], None]) -> bool:
    """Whether it can be done in a folder of this host."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            make(folder)
        except OSError:
            return False
    return True


# Those that umoci can make too: devices only root can, and not in every container; attributes not everywhere.
_MAKES_DEVICES = _can(lambda folder: os.mknod(f"{folder}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
_HAS_ATTRIBUTES = _can(lambda folder: os.setxattr(folder, "user.a", b"1"))
kinds = st.sampled_from(["pipe", *(["char", "block"] if _MAKES_DEVICES else [])])
_SOME = [(("user.a", b"1"),), (("user.a", b"2"), ("user.b", b"\xff\x00"))]
attributes = st.sampled_from([(), *(_SOME if _HAS_ATTRIBUTES else [])])

members = st.one_of(
    st.builds(
        lambda p, b, m, u, g, x: Member(p, body=b, mode=m, uid=u, gid=g, xattrs=x),
        paths,
        st.binary(max_size=4),
        modes,
        owners,
        owners,
        attributes,
    ),
    st.builds(
        lambda p, k, m, u: Member(p, k, mode=m, uid=u, device=(0, 0) if k == "pipe" else (1, 3)),
        paths,
        kinds,
        modes,
        owners,
    ),
    st.builds(lambda p, m, u: Member(p, "dir", mode=m, uid=u), paths, folder_modes, owners),
    st.builds(lambda p, t: Member(p, "link", target=t, mode=0o777), paths, targets),
    st.builds(lambda p: Member(_whiteout(p)), paths),
    st.builds(lambda p: Member(f"{p}/.wh..wh..opq"), paths),
)
# A hard link whose target is not there fails in both, and says little: half of them lead to a file of this layer.
hard_links = st.builds(lambda p, t: Member(p, "hard", target=t), paths, paths)
layers = st.lists(st.lists(st.one_of(members, members, members, hard_links), max_size=8), min_size=1, max_size=3)


def _unpack(layers_: list[list[Member]]) -> dict[str, tuple[object, ...]] | None:
    """What umoci makes of them; `None` where it refuses."""
    with tempfile.TemporaryDirectory(prefix="vmfork-umoci-") as made:
        layout = write_image(Path(made) / "layout", layers_, packing="gzip")
        bundle = Path(made) / "bundle"
        program = find_program("umoci")
        assert program is not None
        argv = [program, "unpack", *([] if _IS_ROOT else ["--rootless"]), "--image", f"{layout}:latest", str(bundle)]
        done = subprocess.run(argv, capture_output=True, check=False, umask=0o022)
        if done.returncode:
            return None
        found = _look(bundle / "rootfs")
        for folder, _, _ in os.walk(bundle / "rootfs"):
            os.chmod(folder, 0o700)
        return found


def _look(root: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root))
        kind = stat.S_IFMT(info.st_mode)
        what: object = ""
        if kind == stat.S_IFREG:
            what = path.read_bytes()
        elif kind == stat.S_IFLNK:
            what = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = (os.major(info.st_rdev), os.minor(info.st_rdev))
        first = name if kind == stat.S_IFDIR else seen.setdefault(info.st_ino, name)
        owner = (info.st_uid, info.st_gid) if _IS_ROOT else ()
        date = int(info.st_mtime) if kind == stat.S_IFREG else 0
        said = {key: os.getxattr(path, key) for key in os.listxattr(path)} if kind == stat.S_IFREG else {}
        found[name] = (info.st_mode, what, first, owner, date, tuple(sorted(said.items())))
    return found


def _apply(layers_: list[list[Member]]) -> dict[str, tuple[object, ...]] | None:
    try:
        work = apply_layers(*layers_)
    except ArtifactError:
        return None
    seen: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for name, inode in sorted(work.root.walk(), key=lambda each: Path(each[0])):
        kind = stat.S_IFMT(inode.mode)
        what: object = ""
        if inode.content is not None:
            work.contents.file.seek(inode.content.offset)
            what = work.contents.file.read(inode.content.size)
        elif kind == stat.S_IFLNK:
            what = inode.target
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = inode.device
        first = name if inode.is_folder else seen.setdefault(id(inode), name)
        owner = (inode.uid, inode.gid) if _IS_ROOT else ()
        date = inode.mtime if kind == stat.S_IFREG else 0
        said = tuple(sorted(inode.xattrs.items())) if kind == stat.S_IFREG else ()
        found[name] = (inode.mode, what, first, owner, date, said)
    return found


@pytest.mark.needs("umoci")
@settings(max_examples=12, deadline=None, derandomize=True)
@given(layers)
@example([[Member("a/a/a"), Member("a", "hard", target="a/a/a")]])
@example([[Member("a")], [Member("a", "hard", target="a")]])
@example([[Member("a/b"), Member("c", "link", target="a"), Member("c/b", "hard", target="a/b")]])
@example([[Member("a"), Member("b", "hard", target="a"), Member("a", "hard", target="b")]])
def test_layers_give_the_tree_that_umoci_makes_of_them(given_layers):
    assert _apply(given_layers) == _unpack(given_layers)


@pytest.mark.slow
@pytest.mark.needs("umoci")
@settings(max_examples=400, deadline=None)
@given(layers)
def test_many_layers_give_the_tree_that_umoci_makes_of_them(given_layers):
    assert _apply(given_layers) == _unpack(given_layers)


@pytest.mark.needs("umoci", "root")
def test_devices_owners_and_capabilities_are_what_umoci_makes_of_them():
    given_layers = [
        [
            Member("ping", body=b"x", mode=0o755, uid=5, gid=6, xattrs=(("security.capability", _CAPABILITY),)),
            Member("fifo", "pipe", mode=0o640),
            *([Member("null", "char", mode=0o666, device=(1, 3))] if _MAKES_DEVICES else []),
            Member("other", "hard", target="ping"),
        ]
    ]
    found = _apply(given_layers)
    assert found == _unpack(given_layers)
    assert found is not None
    assert found["ping"][5] == (("security.capability", _CAPABILITY),)
