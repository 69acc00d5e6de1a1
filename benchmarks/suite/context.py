"""What a measurement is given: templates, the raw baseline, a folder of its own, turns for its sides, and time."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.suite.figures import NotRun, Samples
from vmfork.api.template import Template
from vmfork.api.vm import VM
from vmfork.bench.fork import get_source
from vmfork.config import Instance, Places, VMConfig, find_places
from vmfork.errors import HostError, StoreBusy, TemplateNotFound
from vmfork.host import facts
from vmfork.host.folders import make_private
from vmfork.host.lock import FileLock
from vmfork.owner import Owner
from vmfork.progress import Progress, ignore_progress
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template import source as template_source
from vmfork.units import format_mib

if TYPE_CHECKING:
    from benchmarks.suite.figures import Side
    from vmfork.bench.raw import Source
    from vmfork.machine.base import Adopted
    from vmfork.progress import ProgressListener


MEMORY_MIB = 256
# Fewer rounds than this say nothing, however slow they are.
_LEAST_ROUNDS = 3
# Left to the rest of the host where machines are counted in dozens.
_SPARE_MIB = 1024


class Context(Owner):
    """Owner of everything a run makes: templates, forks by hand, files. `aclose()` leaves none of it.

    `quick` asks for a look, not a measurement; `rounds` replaces what each measurement would take.
    """

    def __init__(
        self, places: Places, lock: FileLock, *, quick: bool, rounds: int | None, progress: ProgressListener
    ) -> None:
        self.places = places
        self.quick = quick
        self._lock = lock
        self._rounds = rounds
        self._progress = progress
        self._templates: dict[VMConfig, Template] = {}
        self._sources: dict[str, Source] = {}
        self._task = ""
        self._end = float("inf")

    @classmethod
    async def open(
        cls,
        *,
        quick: bool = False,
        rounds: int | None = None,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """A context with a runtime folder of its own below the one in force; what a killed run left there is gone.

        Images are those in force. Raises `StoreBusy` while another benchmark runs: each would measure the other.
        """
        outer = places or find_places()
        own = Places(outer.home, make_private(make_private(outer.runtime) / "bench"))
        lock = FileLock.try_acquire(own.runtime / "lock", holder=f"process {os.getpid()}")
        if lock is None:
            raise StoreBusy("the benchmark", hint="wait for the other run to finish: two would measure each other")
        context = cls(own, lock, quick=quick, rounds=rounds, progress=progress)
        await context._remove_templates()
        return context

    async def template(
        self,
        *,
        memory_mib: int = MEMORY_MIB,
        cpus: int = 1,
        max_cpus: int = 0,
        max_memory_mib: int = 0,
    ) -> Template:
        """A template of that size, built when it is first asked for. Raises `NotRun` when the host is too small."""
        config = VMConfig(cpus=cpus, memory_mib=memory_mib, max_cpus=max_cpus, max_memory_mib=max_memory_mib)
        try:
            return await self.build(config)
        except HostError as error:
            raise NotRun(f"no template of {format_mib(memory_mib)} here: {error}") from error

    async def build(self, config: VMConfig) -> Template:
        """A template of that configuration, built when it is first asked for. Building is taken off no budget."""
        if config not in self._templates:
            begun = time.monotonic()
            name = f"bench-{config.cpus}c-{config.memory_mib}m-{config.max_cpus}c-{config.max_memory_mib}m"
            name += "-nic" if config.nic else ""
            self.report(f"building a template of {format_mib(config.memory_mib)}")
            self._templates[config] = await Template.build(name, config, places=self.places, progress=self._progress)
            self._end += time.monotonic() - begun
        return self._templates[config]

    async def adopted_fork(self, template: Template) -> Adopted:
        """A fork as its parts, for what no VM offers."""
        source = await template_source.Source.open(template.name, config=VMConfig(), instance=Instance(self.places))
        return await (await source.fork_base()).adopt(timeout_s=30)

    async def boot(self, *, memory_mib: int = MEMORY_MIB) -> VM:
        """A VM that was booted, of the size of the templates."""
        return await VM.boot(VMConfig(memory_mib=memory_mib), places=self.places)

    async def raw_source(self, template: Template) -> Source:
        """What the same forks are made from by hand: the very arguments a fork gets, taken from a real one."""
        if template.generation not in self._sources:
            self._sources[template.generation] = await get_source(template, places=self.places)
        return self._sources[template.generation]

    async def interleave(
        self,
        samples: Samples,
        sides: Mapping[str, Side],
        *,
        rounds: int,
        quick_rounds: int = 3,
        warm_up: int = 1,
    ) -> None:
        """Each side was measured once a round, for `rounds` rounds or as many as the time allows.

        Another side goes first in each round. The first `warm_up` rounds do not count. A side gives its sample, or
        several by name. One that raises `NotRun` is left out from then on, with the reason.
        """
        wanted = self.count_rounds(rounds, quick_rounds)
        samples.wanted_rounds += wanted
        active = dict(sides)
        longest = 0.0
        for number in range(-(0 if self.quick else warm_up), wanted):
            if number >= min(_LEAST_ROUNDS, wanted) and time.monotonic() + longest > self._end:
                break
            begun = time.monotonic()
            self.report(f"round {max(number + 1, 1)} of {wanted}")
            names = list(active)
            turn = number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                try:
                    found = await active[name]()
                except NotRun as error:
                    del active[name]
                    samples.skip(name, str(error))
                    continue
                if number >= 0:
                    for key, value in found.items() if isinstance(found, Mapping) else ((name, found),):
                        samples.add(key, value)
            if not active:
                break
            if number >= 0:
                samples.rounds += 1
            longest = max(longest, time.monotonic() - begun)

    def count_rounds(self, rounds: int, quick_rounds: int = 3) -> int:
        """How many rounds are wanted."""
        if self._rounds is not None:
            return self._rounds
        return quick_rounds if self.quick else rounds

    def begin(self, task: str, budget_s: float) -> None:
        """A measurement begins: its name for whoever watches, and when it should be done."""
        self._task = task
        self._end = time.monotonic() + budget_s

    def has_time(self, need_s: float = 0.0) -> bool:
        """Whether the measurement that runs has `need_s` seconds left."""
        return time.monotonic() + need_s <= self._end

    def report(self, step: str) -> None:
        self._progress(Progress(task=f"bench {self._task}".rstrip(), step=step))

    def check_memory(self, need_mib: int) -> None:
        """Raises `NotRun` when the host has less memory to spare."""
        have = facts.available_memory_bytes() // 2**20
        if have < need_mib + _SPARE_MIB:
            raise NotRun(f"it takes {format_mib(need_mib)} of memory and {format_mib(have)} are available")

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a process that is to use this context's places.

        It may write bytecode, as an installation does: without that, each start compiles all it imports.
        """
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            "VMFORK_HOME": str(self.places.home),
            "VMFORK_RUNTIME_DIR": str(self.places.runtime),
            **(extra or {}),
        }

    def command(self, *arguments: str) -> list[str]:
        """The command line `vmfork` of this very installation."""
        script = Path(sys.executable).with_name("vmfork")
        return [str(script), *arguments] if script.exists() else [sys.executable, "-m", "vmfork", *arguments]

    def scratch(self, name: str) -> Path:
        """An empty folder in memory, gone at the end of the run."""
        folder = self.places.runtime / f"scratch-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        return make_private(folder)

    @property
    def peers(self) -> Path:
        """Where peers are installed that are Python packages: a folder that lasts."""
        return self.places.home / "peers"

    async def aclose(self) -> None:
        """All templates and files of the run are gone. Each measurement has ended what it started."""
        async with AsyncExitStack() as stack:
            stack.callback(self._lock.close)
            stack.callback(shutil.rmtree, self.places.runtime, ignore_errors=True)
            await asyncio.shield(asyncio.ensure_future(self._remove_templates()))

    async def _remove_templates(self) -> None:
        await LayerStore(self.places.layers).remove_all()
        # One that cannot be opened goes as well.
        store = TemplateStore(self.places.templates)
        store.sweep()
        for name in store.list_names():
            with suppress(TemplateNotFound):
                await store.remove(name)
