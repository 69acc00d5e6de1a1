"""The static lists that this process has open: a handle that was passed on finds its node through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.cluster.terms import Site

    class Listed(Site, Protocol):
        """A site whose nodes are named in advance."""

        @property
        def servers(self) -> Sequence[str]: ...


_open: WeakSet[Listed] = WeakSet()


def join_site(site: Listed) -> None:
    """Handles find it, until it is left."""
    _open.add(site)


def leave_site(site: Listed) -> None:
    """Handles find it no more."""
    _open.discard(site)


def find_site(node: str) -> Site | None:
    """An open list that names the node, or `None`."""
    return next((site for site in _open if node in site.servers), None)
