"""Machines that wait on a node, ready: some of each template that its configuration keeps a pool of, while it is there.

```
templates of [factory], cache > 0    a pool of each, once it is in force here
no room for who asks                 all pools are given up for a minute: a machine that waits is no reason to refuse
drained                              no pools
```
The pools are a factory's (`factory/cache.py`), which follows a template that was replaced by another of its name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmfork.errors import Closed, DeadlineExceeded, FallbackRefused, VMForkError
from vmfork.factory.factory import Factory
from vmfork.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vmfork.api.vm import VM
    from vmfork.config import FactoryConfig, Places

_log = logging.getLogger("vmfork")

# Room that was given up is asked for by others who come now.
REST_S = 60.0
# There was one when it was looked at; who took it meanwhile is not waited for.
_TAKE_LIMIT_S = 0.2
# What a machine is begun with cannot be given to one that waits; for another size it would have to grow.
_BEGUN_WITH = {"cpus": None, "memory_mib": None, "disk": None, "card": "none"}


class Pools(Owner):
    """Owner of the machines that wait. There are none until `follow`."""

    def __init__(self, config: FactoryConfig, places: Places) -> None:
        self._config = config
        self._places = places
        self._names = frozenset(config.template_names if config.cache else ())
        self._factories: dict[str, Factory] = {}
        self._failed: dict[str, str] = {}
        self._rests_until = 0.0
        self._changing = asyncio.Lock()

    @property
    def are_wanted(self) -> bool:
        """Whether the configuration keeps any."""
        return bool(self._names)

    async def follow(self, templates: Collection[str]) -> None:
        """Of those `templates`, which are in force here, there are pools, as far as they are to have some; no others.

        One that cannot be opened is tried again the next time.
        """
        async with self._changing:
            await self._close(self._factories.keys() - {*templates})
            if time.monotonic() < self._rests_until:
                return
            for name in (self._names & {*templates}) - self._factories.keys():
                await self._open(name)

    def count_ready(self) -> Mapping[str, int]:
        """How many machines wait, by template."""
        pools = {name: factory.stats().pools.values() for name, factory in self._factories.items()}
        return {name: sum(pool.ready for pool in found) for name, found in pools.items()}

    async def take(self, template: str, options: Mapping[str, Any]) -> VM | None:
        """A machine of the template that waited, made what `options` of `Template.fork` say.

        `None` where none waits, or not one that can be given what is asked for: it is to be forked then. Raises what
        any machine would meet, as a file that cannot be written.
        """
        if not self.count_ready().get(template):
            return None
        if any(options.get(name, plain) != plain for name, plain in _BEGUN_WITH.items()):
            return None
        given = {name: value for name, value in options.items() if name not in _BEGUN_WITH}
        limit_s = given.pop("timeout_s", None)
        try:
            async with asyncio.timeout(limit_s):
                return await self._factories[template].get_vm(template=template, timeout_s=_TAKE_LIMIT_S, **given)
        except TimeoutError as error:
            raise DeadlineExceeded(f"taking a machine of {template!r}", limit_s or 0.0) from error
        except (FallbackRefused, Closed):
            return None

    async def give_way(self) -> bool:
        """None waits any more, and for some time none will. Whether any did."""
        had = any(self.count_ready().values())
        await self._rest(time.monotonic() + REST_S)
        return had

    async def aclose(self) -> None:
        """As `give_way`, for good."""
        await self._rest(float("inf"))

    async def _rest(self, until: float) -> None:
        self._rests_until = until
        async with self._changing:
            await self._close({*self._factories})

    async def _open(self, name: str) -> None:
        config = replace(
            self._config,
            template=False,
            recipe="",
            templates=(name,),
            remote=False,
            missing="refuse",
            fallback="refuse",
        )
        factory = Factory(config, places=self._places)
        try:
            self._factories[name] = await factory.open()
        except VMForkError as error:
            if self._failed.get(name) != str(error):
                _log.warning("no machines of template %r wait here: %s", name, error)
            self._failed[name] = str(error)
        else:
            self._failed.pop(name, None)

    async def _close(self, names: Collection[str]) -> None:
        await asyncio.gather(*(self._factories.pop(name).aclose() for name in [*names]))
