"""The commands that Debian provides by choice (`awk`, `pager`, `libblas.so.3`): read from the packages' own scripts.

Maintainer scripts do not run here, so nobody calls update-alternatives(1). Its calls are read from the scripts instead;
those that a script computes (a `$` in them) are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfork.image.tree import Tree

_CALL = re.compile(r"update-alternatives\b((?:[^\n\\]|\\.|\\\n)*)")
_GROUP = re.compile(r"--(?:install|slave)\s+(/\S+)\s+(\S+)\s+(/\S+)(?:\s+(\d+))?")


@dataclass(frozen=True, slots=True)
class Alternative:
    """`link` may lead to `path`; where several offer the same link, the highest priority wins."""

    link: str
    path: str
    priority: int


def find_alternatives(script: str) -> list[Alternative]:
    """What the maintainer script offers. A slave has the priority of its master."""
    found = []
    for call in _CALL.findall(script):
        priority = 0
        for link, _, path, rank in _GROUP.findall(call.replace("\\\n", " ")):
            priority = int(rank) if rank else priority
            if "$" not in link + path:
                found.append(Alternative(link, path, priority))
    return found


def link_alternatives(tree: Tree, scripts: Iterable[str]) -> None:
    """Every link on offer is in the tree, to the best of those that are there; what a package brought itself stays."""
    offers = sorted(
        (offer for script in scripts for offer in find_alternatives(script)),
        key=lambda offer: (-offer.priority, offer.link, offer.path),
    )
    for offer in offers:
        folder, _, name = offer.link.rpartition("/")
        inside = tree.resolve(folder)
        if inside is None or tree.resolve(offer.path) is None:
            continue
        path = f"{inside}/{name}" if inside else name
        if path not in tree:
            tree.add_link(path, offer.path)
