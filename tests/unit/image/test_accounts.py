"""Shadow files where the package that makes them is not in the image."""

from __future__ import annotations

import io
import stat

import pytest

from vmfork.image.accounts import add_shadow_files
from vmfork.image.tree import Tree

PASSWD = b"root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = b"root:*:0:\nadm:*:4:one,two\nshadow:*:42:\n"
DAY = 20309  # 2025-08-09


@pytest.fixture
def tree() -> Tree:
    tree = Tree(io.BytesIO())
    tree.add_file("etc/passwd", PASSWD)
    tree.add_file("etc/group", GROUP)
    return tree


def test_passwords_move_to_files_that_root_and_the_group_shadow_can_read(tree) -> None:
    add_shadow_files(tree, changed_at=DAY * 86_400 + 5)
    assert tree.read("etc/shadow") == b"root:*:20309:0:99999:7:::\nnobody:*:20309:0:99999:7:::\n"
    assert tree.read("etc/gshadow") == b"root:*::\nadm:*::one,two\nshadow:*::\n"
    for path in ("etc/shadow", "etc/gshadow"):
        node = tree.get(path)
        assert (stat.S_IMODE(node.mode), node.uid, node.gid) == (0o640, 0, 42)
    assert tree.read("etc/passwd") == PASSWD.replace(b":*:", b":x:")
    assert tree.read("etc/group") == GROUP.replace(b":*:", b":x:")
    assert stat.S_IMODE(tree.get("etc/passwd").mode) == 0o644
    assert tree.read("etc/subuid") == tree.read("etc/subgid") == b""


def test_what_a_package_made_stays_as_it_is(tree) -> None:
    tree.add_file("etc/shadow", b"root:!:1::::::\n", 0o640)
    tree.add_file("etc/subuid", b"one:100000:65536\n")
    add_shadow_files(tree, changed_at=0)
    assert tree.read("etc/shadow") == b"root:!:1::::::\n"
    assert tree.read("etc/subuid") == b"one:100000:65536\n"
    assert tree.read("etc/passwd") == PASSWD
    assert "etc/gshadow" not in tree
    assert tree.read("etc/subgid") == b""
