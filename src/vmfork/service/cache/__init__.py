"""The VM cache server: a pool of ready machines behind a Unix socket, with health, status and metrics."""

from vmfork.service.cache.pools import open_pools
from vmfork.service.cache.serve import serve
from vmfork.service.cache.server import CacheServer

__all__ = ["CacheServer", "open_pools", "serve"]
