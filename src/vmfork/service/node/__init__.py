"""A node of a static list: this host's templates and machines, for callers elsewhere who may use them."""

from vmfork.service.node.server import NodeServer

__all__ = ["NodeServer"]
