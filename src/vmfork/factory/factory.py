"""The outer factory: whatever the base, what it gives runs, is adopted, and is what was asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from vmfork.config import FactoryConfig, VMConfig, find_places
from vmfork.errors import Closed
from vmfork.factory.direct import DirectFactory
from vmfork.factory.template import TemplateFactory
from vmfork.progress import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from vmfork.config import Places
    from vmfork.factory.base import FactoryBase
    from vmfork.progress import ProgressListener
    from vmfork.vm.vm import VM


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryStats:
    """Counts since the factory was made. `fallbacks` maps the reason (what did not match) to how often."""

    requests: int
    from_base: int
    fallbacks: Mapping[str, int] = field(default_factory=dict)


class Factory:
    """VMs on request: from the base where it matches the request, else booted directly, counted with the reason.

    ```
    template  fetch_only  base
    no        any         direct: boots
    yes       no          template, built now; TemplateExists when there is one
    yes       yes         template, fetched; TemplateNotFound when there is none
    ```
    Making one does nothing yet: it opens at the first `get_vm`, at `open()`, or on entering its block.
    """

    def __init__(
        self,
        config: FactoryConfig | None = None,
        *,
        fetch_only: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> None:
        self.config = config or FactoryConfig()
        self._fetch_only = fetch_only
        self._progress = progress
        self._places = places or find_places()
        self._base: FactoryBase | None = None
        self._direct: dict[VMConfig, DirectFactory] = {}
        self._opening = asyncio.Lock()
        self._closed = False
        self._requests = 0
        self._from_base = 0
        self._fallbacks: Counter[str] = Counter()

    async def open(self) -> Self:
        """The base is ready. Opening again does nothing. Errors are those of the base; the factory stays unopened."""
        if self._closed:
            raise Closed("factory")
        async with self._opening:
            if self._base is None:
                self._base = await self._make_base()
        return self

    async def get_vm(
        self,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
    ) -> VM:
        """A running VM of exactly this configuration (the factory's own by default), adopted and answering.

        `LaunchError`, `AdoptError`, `HostError`, `ConfigError`; nothing is left after any of them.
        """
        await self.open()
        assert self._base is not None
        wanted = config or self.config.vm
        direct = await self._get_direct(wanted)
        self._requests += 1
        mismatch = find_mismatch(self._base, direct)
        if mismatch is None:
            base_vm = await self._base.get_base_vm()
            self._from_base += 1
            limit = wanted.fork_timeout_s
        else:
            self._fallbacks[mismatch] += 1
            base_vm = await direct.get_base_vm()
            limit = wanted.boot_timeout_s
        return await base_vm.adopt(env=env, files=files, timeout_s=limit, hook_timeout_s=wanted.hook_timeout_s)

    def stats(self) -> FactoryStats:
        """What was asked and given so far."""
        return FactoryStats(requests=self._requests, from_base=self._from_base, fallbacks=dict(self._fallbacks))

    async def aclose(self) -> None:
        """No VM can be asked for any more. Those given out, and the template, stay."""
        self._closed = True
        if self._base is not None:
            await self._base.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _make_base(self) -> FactoryBase:
        if not self.config.template:
            return await self._get_direct(self.config.vm)
        if self._fetch_only:
            return await TemplateFactory.fetch(self.config, places=self._places)
        return await TemplateFactory.create(self.config, places=self._places, progress=self._progress)

    async def _get_direct(self, config: VMConfig) -> DirectFactory:
        """What `config` stands for here: both what a base must match and what is booted where it does not."""
        if config not in self._direct:
            self._direct[config] = await DirectFactory.open(config, places=self._places, progress=self._progress)
        return self._direct[config]


def find_mismatch(base: FactoryBase, wanted: FactoryBase) -> str | None:
    """The first thing in which machines of `base` are not what is wanted, or `None`. Sizes come last."""
    differing = next((key for key, value in wanted.traits.items() if base.traits.get(key) != value), None)
    if differing is not None:
        return differing
    if base.cpus != wanted.cpus:
        return "cpus"
    return "memory_mib" if base.memory_mib != wanted.memory_mib else None
