"""The VM cache server of a configuration, as those see it who share the configuration with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config.endpoint import find_endpoint
from vmfork.rpc.endpoint import find_server

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Places


def use_server(config: FactoryConfig, places: Places) -> FactoryConfig:
    """`config`, asking the server that keeps its pool, where one listens: a second pool would hold the same again.

    Raises `HostError` when the server's socket cannot be reached.
    """
    if config.cache == 0 or find_server(find_endpoint(config.endpoint, places)) is None:
        return config
    return replace(config, remote=True, cache=0)
