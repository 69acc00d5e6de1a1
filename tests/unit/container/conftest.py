"""Roots of layers, as what can be compared."""

from __future__ import annotations

import io
import stat
from typing import TYPE_CHECKING

import pytest

from tests.images import make_layer
from vmfork.container.layer import Applying, Contents
from vmfork.container.limits import Budget, ImportLimits
from vmfork.container.root import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.images import Member


@pytest.fixture
def apply() -> Callable[..., Applying]:
    return apply_layers


def apply_layers(*layers: Iterable[Member] | bytes, limits: ImportLimits | None = None) -> Applying:
    """The layers, each a list of members or a tar, were applied."""
    work = Applying(Root(), Contents(io.BytesIO()), Budget(limits or ImportLimits()))
    for number, layer in enumerate(layers, 1):
        data = layer if isinstance(layer, bytes) else make_layer(layer)
        work.apply(io.BytesIO(data), f"layer {number}")
    work.contents.finish()
    return work


def read_content(work: Applying, path: str) -> bytes:
    inode = work.root.find(path.split("/"))
    assert inode is not None
    assert inode.content is not None
    work.contents.file.seek(inode.content.offset)
    return work.contents.file.read(inode.content.size)


def list_tree(work: Applying) -> dict[str, str]:
    """Every path, and what is there in a word: content, target, or kind."""
    found = {}
    for path, inode in work.root.walk():
        if stat.S_ISREG(inode.mode):
            found[path] = read_content(work, path).decode()
        elif stat.S_ISLNK(inode.mode):
            found[path] = f"-> {inode.target}"
        else:
            found[path] = "/" if inode.is_folder else stat.filemode(inode.mode)[0]
    return found
