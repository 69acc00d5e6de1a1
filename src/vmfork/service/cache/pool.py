"""The pool that a configuration stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.factory.cache import CacheFactory
from vmfork.factory.direct import DirectFactory
from vmfork.factory.template import TemplateFactory

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Instance


async def open_pool(config: FactoryConfig, instance: Instance) -> CacheFactory:
    """A pool that fills, over the template or over direct boots.

    The template is built when it is missing or does not fit, now or later. An existing one is used, unlike in `vmfork
    factory init` without a cache: a server that starts again finds its own. Raises `ConfigError` when the host has no
    memory for so many machines.
    """
    least, ttl_s = config.cache_min, config.cache_ttl_s
    instance = replace(instance, budget=config.budget)
    if not config.template:
        base = await DirectFactory.open(config.vm, instance=instance)
        return await CacheFactory.open(base, config.cache, least=least, ttl_s=ttl_s)
    template = await TemplateFactory.ensure(config.template_name, config.vm, instance=instance)
    return await CacheFactory.open(template, config.cache, least=least, ttl_s=ttl_s, rebuild=template.rebuild)
