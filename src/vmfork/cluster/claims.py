"""Which node has the machine of a key, where no directory knows for all: each key has a home, which says it once.

The home of a key is the first node that answers in an order that the key and the list give, so that all programs with
the same list ask the same one.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# While it is being made. Then the nodes tell themselves who has it.
CLAIM_S = 120.0


def order_homes(key: str, nodes: Iterable[str]) -> list[str]:
    """The nodes, in the order in which they are asked about the key. One that goes moves no other's keys."""
    return sorted(
        nodes, key=lambda node: hashlib.sha256(f"{len(key)} {key} {node}".encode("utf-8", "replace")).digest()
    )


class Claims:
    """What this node has said of the keys whose home it is."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[str, float]] = {}

    def claim(self, key: str, node: str, *, instead_of: str = "") -> str:
        """The node where the machine of the key is to be: `node`, or one that was said before and still counts.

        With `instead_of`, that one counts no more.
        """
        now = time.monotonic()
        for late in [each for each, (_, until) in self._nodes.items() if until < now]:
            del self._nodes[late]
        known, _ = self._nodes.get(key, (node, 0.0))
        chosen = node if known == instead_of else known
        self._nodes[key] = (chosen, now + CLAIM_S)
        return chosen

    def release(self, key: str, node: str) -> None:
        """The machine of the key is not on that node, nor on its way there."""
        if self._nodes.get(key, ("", 0.0))[0] == node:
            del self._nodes[key]
