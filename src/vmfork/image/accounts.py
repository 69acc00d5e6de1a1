"""The files of accounts that the scripts of Debian's package `passwd` make, for images that do without that package.

`adduser`, `chpasswd`, PAM and whoever asks for a user's shadow entry take them for granted. As `pwconv` and `grpconv`
write them: passwords move to the shadow files, which only root and the group shadow can read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.image.tree import Tree

_PASSWD, _GROUP = "etc/passwd", "etc/group"
_SHADOW, _GSHADOW = "etc/shadow", "etc/gshadow"
# Ranges of numbers that user namespaces may use. Nobody has one yet; useradd(8) gives them where the files are.
_RANGES = ("etc/subuid", "etc/subgid")
_SHADOW_GROUP = b"shadow"
_DAY_S = 86_400


def add_shadow_files(tree: Tree, *, changed_at: int) -> None:
    """`tree` has each of these files. Where it had one, a script of a package made them, and they stay as they are.

    `changed_at`, in seconds since 1970, is when every password was changed last.
    """
    if _SHADOW not in tree:
        _add_shadow(tree, changed_at // _DAY_S)
    for path in _RANGES:
        if path not in tree:
            tree.add_file(path, b"")


def _add_shadow(tree: Tree, day: int) -> None:
    users, groups = _entries(tree.read(_PASSWD)), _entries(tree.read(_GROUP))
    gid = next((int(entry[2]) for entry in groups if entry[0] == _SHADOW_GROUP), 0)
    shadow = [[name, password, b"%d" % day, b"0", b"99999", b"7", b"", b"", b""] for name, password, *_ in users]
    gshadow = [[name, password, b"", members] for name, password, _, members in groups]
    for path, entries in ((_SHADOW, shadow), (_GSHADOW, gshadow)):
        tree.add_file(path, _lines(entries), 0o640)
        tree.own(path, mode=0o640, uid=0, gid=gid)
    for path, entries in ((_PASSWD, users), (_GROUP, groups)):
        tree.add_file(path, _lines([[entry[0], b"x", *entry[2:]] for entry in entries]))


def _entries(text: bytes) -> list[list[bytes]]:
    return [line.split(b":") for line in text.splitlines() if line]


def _lines(entries: list[list[bytes]]) -> bytes:
    return b"".join(b":".join(entry) + b"\n" for entry in entries)
