"""What this process is joined to: open static lists, or Ray. A handle that was passed on finds its node by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from vmfork.errors import Closed, HostError
from vmfork.late import import_late

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


def find_site(node: str) -> Site:
    """The open list that names the node, or the cluster of Ray's that this process is in.

    Raises `Closed` where there is neither, and `HostError` for a node of Ray's where that is not installed.
    """
    for site in _open:
        if node in site.servers:
            return site
    if ":" in node:  # the address of a server; nodes of Ray's are named by their ids
        raise Closed(
            "the cluster of this handle",
            f"this process has no list open that names {node}",
            hint="open the list here (vmfork.Cluster.at), and keep it open while the handle is used",
        )
    found: Site = load_from_ray("ray_site", "join_site")()
    return found


def load_from_ray(module: str, name: str) -> Any:
    """What that module beside this one calls `name`. Raises `HostError` where Ray is not installed."""
    try:
        # An optional extra, and it takes a second to load.
        return import_late(f"vmfork.cluster.{module}", name)
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise HostError(
            "a cluster needs Ray", hint="install vmfork with its extra: pip install 'vmfork[ray]'"
        ) from error
