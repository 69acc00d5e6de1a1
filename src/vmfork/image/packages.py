"""What dpkg knows of the packages in a root: which are there, which were asked for, which file is whose."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfork.image.tree import Tree

_LISTS = "var/lib/dpkg/info"


def read_versions(text: bytes) -> dict[str, str]:
    """Package names -> versions, of lines with both, sorted by name."""
    words = (line.split() for line in text.decode().splitlines())
    return dict(sorted((name, version) for name, version in words))


def find_unneeded(tree: Tree, installed: Iterable[str], needed: Iterable[str]) -> list[str]:
    """The paths that only packages beyond `needed` brought, children before their parents.

    What their scripts made is not among them: it stays.
    """
    wanted = set(needed)
    kept = {path for name in wanted for path in _list_files(tree, name)}
    only = {path for name in installed if name not in wanted for path in _list_files(tree, name)} - kept
    return sorted(only, reverse=True)


def _list_files(tree: Tree, name: str) -> set[str]:
    """The paths of the package as they are in the tree, /bin/sh being at usr/bin/sh."""
    lists = (f"{_LISTS}/{name}.list", f"{_LISTS}/{name}:amd64.list")
    found = next((path for path in lists if path in tree), None)
    if found is None:
        return set()
    return {path for line in tree.read(found).decode().splitlines() if (path := _locate(tree, line))}


def _locate(tree: Tree, path: str) -> str | None:
    folder, name = posixpath.split(path)
    inside = tree.resolve(folder)
    place = posixpath.join(inside, name) if inside is not None else None
    return place if place and place in tree else None
