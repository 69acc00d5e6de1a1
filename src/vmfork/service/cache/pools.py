"""The pools of a server: one for each template that it keeps machines of, or one of booted machines."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from vmfork.errors import TemplateStale
from vmfork.factory.cache import CacheFactory
from vmfork.factory.direct import DirectFactory
from vmfork.factory.held import CacheStatus
from vmfork.factory.template import TemplateFactory, find_own_recipe
from vmfork.owner import Owner
from vmfork.rpc.status import PoolStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.kind import Base, Kind


class Pools(Owner):
    """Owner of one pool or more. The first is asked when no template is named."""

    def __init__(self, pools: Sequence[CacheFactory]) -> None:
        self._pools = pools

    def __iter__(self) -> Iterator[CacheFactory]:
        return iter(self._pools)

    @property
    def kinds(self) -> Sequence[Kind]:
        """What machines each of them holds."""
        return [pool.kind for pool in self._pools]

    def find(self, template: str) -> CacheFactory:
        """The pool of that template, the first when none is named. Raises `TemplateStale` when there is none."""
        for pool in self._pools:
            if template in ("", pool.kind.template):
                return pool
        held = ", ".join(kind.template for kind in self.kinds)
        raise TemplateStale(self._pools[0].kind.name, "template", held, template)

    @property
    def is_stuck(self) -> bool:
        """Whether none of them holds a machine, and the last start of each failed."""
        return all(pool.is_stuck for pool in self._pools)

    async def wait_stuck(self) -> None:
        """All of them are stuck: whoever asks would wait in vain."""
        while not self.is_stuck:
            await asyncio.gather(*(pool.wait_stuck() for pool in self._pools))

    async def wait_unstuck(self) -> None:
        """One of them is not stuck."""
        waiting = {asyncio.ensure_future(pool.wait_unstuck()) for pool in self._pools}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def wait_full(self, *, timeout_s: float) -> None:
        """Each of them is full. Raises `DeadlineExceeded`, `Closed`."""
        await asyncio.gather(*(pool.wait_full(timeout_s=timeout_s) for pool in self._pools))

    def status(self) -> CacheStatus:
        """The figures of all of them together."""
        each = [pool.status() for pool in self._pools]
        dropped: Counter[str] = Counter()
        for one in each:
            dropped.update(one.dropped)
        counted = {each.name for each in fields(PoolStatus)} - {"last_error", "dropped"}
        return CacheStatus(
            **{name: sum(getattr(one, name) for one in each) for name in counted},
            last_error=next((one.last_error for one in each if one.last_error), ""),
            dropped=dict(dropped),
            closed=all(one.closed for one in each),
            vms=tuple(vm for one in each for vm in one.vms),
        )

    async def aclose(self) -> None:
        """Every machine that is held is gone; callers that wait got `Closed`."""
        await asyncio.gather(*(pool.aclose() for pool in self._pools))


async def open_pools(config: FactoryConfig, instance: Instance) -> Pools:
    """Pools that fill, over each template, or one over direct boots where the configuration names none.

    The factory's own template is built when it is missing or does not fit, now or later. The others are made again as
    they were made before. An existing template is no error: a server that starts again finds its own. Raises
    `ConfigError` when the host has no memory for so many machines. After an error nothing is left.
    """

    async def pool(base: Base, rebuild: Callable[[], Awaitable[None]] | None = None) -> CacheFactory:
        return await CacheFactory.open(
            base, config.cache, least=config.cache_min, ttl_s=config.cache_ttl_s, rebuild=rebuild
        )

    instance = replace(instance, budget=config.budget)
    if not config.template_names:
        return Pools([await pool(await DirectFactory.open(config.vm, instance=instance))])
    async with AsyncExitStack() as on_failure:
        pools: list[CacheFactory] = []
        for name in config.template_names:
            if config.template and name == config.template_name:
                recipe = find_own_recipe(config)
                template = await TemplateFactory.ensure(name, config.vm, instance=instance, recipe=recipe)
            else:
                template = await TemplateFactory.restore(name, config.vm, instance=instance)
            pools.append(await on_failure.enter_async_context(await pool(template, template.rebuild)))
        on_failure.pop_all()
    return Pools(pools)
