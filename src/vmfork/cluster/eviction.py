"""The templates of a node stay within the budget of its memory: those that another node has go, least used first.

```
forked, named by the budget           stays
given to another node just now        stays
built here, and can be built again    may go, as everywhere (`template/budget.py`)
came from a node                      may go where another node says that it has it, and that it is not about to go
any other                             stays
```
Who asks others has said before that its own is about to go: of two that ask each other one at most lets it go.
The budget is memory's, which disks take none of. A disk goes with the last template, image or machine that needs it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.cluster.terms import digest_of
from vmfork.errors import StoreBusy, TemplateError, VMForkError
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.progress import Progress
from vmfork.store import TemplateStore
from vmfork.template.budget import list_holdings
from vmfork.units import format_mib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmfork.cluster.terms import Peers
    from vmfork.config import Instance
    from vmfork.store import Manifest

# What a template says that it came from, where that was a node.
ORIGIN = "node "


class Eviction:
    """What goes from the node of that name for a template that comes. `is_sent` tells what others are given now."""

    def __init__(self, name: str, instance: Instance, peers: Peers, *, is_sent: Callable[[str], bool]) -> None:
        self._name = name
        self._instance = instance
        self._peers = peers
        self._is_sent = is_sent
        self._going: set[str] = set()
        self._one_at_a_time = asyncio.Lock()

    def is_going(self, digest: str) -> bool:
        """Whether nobody is to count on the template of that digest here."""
        return digest in self._going

    async def make_room(self, name: str, need_mib: int) -> None:
        """The others leave `need_mib` MiB of the budget to the template `name`, as far as they may go.

        Where that is not enough all stay: whoever puts the template in force says so, with the arithmetic.
        """
        budget = self._instance.budget
        if not budget.mib:
            return
        async with self._one_at_a_time:
            holdings = await asyncio.to_thread(list_holdings, self._instance)
            others = [each for each in holdings if each.name != name]
            over_mib = sum(each.mib for each in others) + need_mib - budget.mib
            going: dict[str, str] = {}
            try:
                for each in sorted(others, key=lambda each: each.used_at):
                    if over_mib <= 0:
                        break
                    if each.may_go:
                        over_mib -= each.mib
                    elif each.is_free and (digest := await self._find_elsewhere(each.name)):
                        going[each.name] = digest
                        over_mib -= each.mib
                if over_mib <= 0:
                    await self._remove(going)
            finally:
                self._going.clear()

    async def _find_elsewhere(self, name: str) -> str:
        """The digest of the template where another node has it; from then on it is about to go. Else empty."""
        store = TemplateStore(self._instance.places.templates)
        try:
            m = await asyncio.to_thread(store.read_manifest, name)
        except (TemplateError, StoreBusy):
            return ""
        digest = digest_of(m)
        if not m.came_from.startswith(ORIGIN) or self._is_sent(digest):
            return ""
        self._going.add(digest)
        async for node in self._list_others(m):
            with suppress(VMForkError):  # it has ended, or is of another vmfork: it has nothing that we count on
                if await self._peers.call(node, "keeps", digest):
                    return digest
        self._going.discard(digest)
        return ""

    async def _list_others(self, m: Manifest) -> AsyncIterator[str]:
        """Where it came from, and then all; servers of a list know of no others."""
        origin = m.came_from.removeprefix(ORIGIN)
        yield origin
        with suppress(VMForkError):
            for node in await self._peers.list_nodes():
                if node not in (origin, self._name):
                    yield node

    async def _remove(self, going: dict[str, str]) -> None:
        store, budget = TemplateStore(self._instance.places.templates), self._instance.budget
        for name, digest in going.items():
            if self._is_sent(digest):  # since it was looked at
                continue
            told = f"removing {name!r}, least recently used here, for a budget of {format_mib(budget.mib)}"
            self._instance.progress(Progress(task="template", step=told))
            with suppress(TemplateError, StoreBusy):
                await store.remove(name)
        await in_thread(lambda _: DiskStore(self._instance.places.disks).sweep())
