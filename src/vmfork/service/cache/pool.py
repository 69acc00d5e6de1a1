"""The pool that a configuration stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.factory.cache import CacheFactory
from vmfork.factory.direct import DirectFactory
from vmfork.factory.template import TemplateFactory

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.kind import Base


async def open_pool(config: FactoryConfig, instance: Instance) -> CacheFactory:
    """A pool that fills, over the template (which was built where it was missing) or over direct boots.

    A server that starts again finds its template there: that is no error, unlike in `vmfork factory init` without a
    cache. `ConfigError` when the host has not the memory for so many.
    """
    base: Base
    if config.template:
        base = await TemplateFactory.ensure(config.template_name, config.vm, instance=instance)
    else:
        base = await DirectFactory.open(config.vm, instance=instance)
    return await CacheFactory.open(base, config.cache, ttl_s=config.cache_ttl_s)
