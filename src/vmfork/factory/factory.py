"""The outer factory: whatever the base, what it gives runs, is adopted, and is what was asked for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from vmfork.api.vm import VM, allow_forks
from vmfork.border import guarded
from vmfork.config import FactoryConfig, Instance, VMConfig, find_places
from vmfork.config.loader import load_settings
from vmfork.errors import (
    Closed,
    ConfigError,
    DeadlineExceeded,
    FallbackRefused,
    TemplateError,
    VMForkError,
)
from vmfork.factory.bases import Bases
from vmfork.factory.choice import Choice, Match, Miss, Oversize, Want, choose, spell_size
from vmfork.factory.direct import DirectFactory
from vmfork.factory.kind import Listener
from vmfork.factory.request import Request, find_want
from vmfork.factory.stats import Counts, FactoryStats
from vmfork.host.bound import Bound
from vmfork.host.dropped import close_dropped
from vmfork.image import ImageStore
from vmfork.journal import about
from vmfork.machine.again import made_again
from vmfork.machine.isolation import check_isolation
from vmfork.machine.origin import Origin
from vmfork.machine.request import ForkRequest
from vmfork.owner import Owner, gives_owner
from vmfork.progress import ignore_progress
from vmfork.rpc.endpoint import use_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import Places
    from vmfork.machine.base import Adopted
    from vmfork.machine.timings import Timings
    from vmfork.network.policy import NetworkPolicy
    from vmfork.progress import ProgressListener
    from vmfork.wire.given import GivenFile

_log = logging.getLogger(__name__)

# A fork that failed is tried once more: the host may have been short of something for a moment.
_TRIES = 2


@guarded
class Factory(Owner):
    """VMs on request: from a base that matches, grown where it is smaller; else booted or refused, with the reason.

    ```
    template  remote  cache  fetch_only  base
    no        no      0      no          direct: boots
    no        no      0      yes         direct: boots
    yes       no      0      no          template: used, or built now where it is missing or does not fit
    yes       no      0      yes         template: fetched; TemplateNotFound when there is none
    no        any     > 0    no          cache over direct, where `templates` names none
    no        any     > 0    yes         ConfigError
    yes       any     > 0    no          cache over template: used, or built now where it is missing or does not fit
    yes       any     > 0    yes         ConfigError
    any       yes     0      no          remote: asks the cache server
    any       yes     0      yes         remote: asks the cache server
    ```
    Those of `templates` are fetched beside it, each under a cache of its own if there is one. Without a configuration
    the factory has that of the commands (`load_settings`), and asks the server when one keeps the pool of it. With
    `build = "background"` requests are served without the template while it is built. Making a factory does nothing
    yet: it opens at the first `get_vm`, at `open()`, or on entering its block.
    """

    config: FactoryConfig
    """The configuration it was made with."""
    # Here, because one whose constructor refused its arguments is collected too.
    _bound: Bound | None = None  # by the loop in which it was opened
    _closed = False

    def __init__(
        self,
        config: FactoryConfig | None = None,
        *,
        fetch_only: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> None:
        self._is_shared = config is None
        self.config = config or load_settings().factory
        self._fetch_only = fetch_only
        self._instance = Instance(places or find_places(), progress)
        self._bases = self._make_bases(self.config)
        self._counts = Counts()
        self._opening = asyncio.Lock()

    async def open(self) -> Self:
        """The bases are ready. Opening again does nothing. Raises what the bases raise; it stays unopened then."""
        self._check_open()
        async with self._opening:
            if self._bound is None:
                self._bound = Bound("the factory")
                try:
                    if self._is_shared:
                        self._bases = self._make_bases(use_server(self.config, self._instance.places))
                    await self._bases.open()
                except BaseException:
                    self._bound = None
                    raise
        return self

    @gives_owner
    async def get_vm(
        self,
        config: VMConfig | None = None,
        *,
        template: str = "",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
    ) -> VM:
        """A running VM of exactly this configuration, adopted and answering; `source` says where it came from.

        With `template` it is a fork of the template of that name. Without a configuration it has the factory's. When
        that asks for nothing in particular (it `is_plain`), or a template is named, the VM is what the first template,
        pool or server gives. `cpus` and `memory_mib` ask for the same in another size. `timeout_s` bounds the wait for
        a machine of a cache (by default the configuration's `fork_timeout_s`). It ends by itself after `ttl_s` seconds,
        and after `idle_ttl_s` without a request to its guest, reaches what `network` says, and may be forked by its
        programs as `allow_guest_fork` says, as a fork of `Template.fork`: neither a pool nor a server has a say in
        that.

        When no such machine can be had, one of another template, which was warmed up in another way, is never given in
        its place: a VM is booted, or `FallbackRefused` is raised, as `fallback` says.

        Raises `ConfigError` for a template that the factory does not have, and, unless `oversize` says otherwise, when
        only larger machines are ready. Raises `SetupError` when a hook of the template or a file given here failed, and
        `LaunchError`, `AdoptError`, `HostError`. Nothing is left after any of them.
        """
        fork = ForkRequest(
            env=env or {},
            files=files or {},
            ttl_s=ttl_s,
            idle_ttl_s=idle_ttl_s,
            network=network,
            allow_guest_fork=allow_guest_fork,
        )
        sizes = {"cpus": cpus, "memory_mib": memory_mib}
        if config is None and not (template or self.config.vm.is_plain):
            config = self.config.vm
        request = Request(
            config=config,
            template=template,
            sizes={name: size for name, size in sizes.items() if size is not None},
            fork=fork,
            timeout_s=timeout_s,
        )
        await self.open()
        self._check_template(template)
        return await allow_forks(await self._take(request), fork, instance=self._instance)

    async def _take(self, request: Request) -> VM:
        self._counts.requests += 1
        if self._bases.is_direct:
            vm = await self._boot(request, Miss("asked"))
            self._counts.choices[Match.EXACT] += 1
            return vm
        found = await self._from_base(request)
        if isinstance(found, Miss):
            self._check_open()
            self._note_fallback(found, request)
            return await self._boot(request, found)
        return found

    def stats(self) -> FactoryStats:
        """What was asked and given so far."""
        return self._counts.freeze(self._bases)

    async def aclose(self) -> None:
        """The factory gives no more VMs, and callers that wait get `Closed`. VMs given out, and templates, stay."""
        if self._bound is not None and self._bound.is_forked:
            return  # it is the parent's
        if self._bound is not None and not self._bound.is_here:
            if not await self._bound.run_there(self.aclose):
                self._end()
            return
        self._closed = True
        await self._bases.aclose()

    def _end(self) -> None:
        """As `aclose`, at once and without an event loop."""
        self._closed = True
        self._bases.end()

    def __del__(self) -> None:
        if self._bound is not None and not self._closed:
            close_dropped(self, self._bound, self._end)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def _from_base(self, request: Request) -> VM | Miss:
        """A VM of the base that serves the request, or why no base does.

        When a machine could not be had, another one is tried, once; then the base has failed. Raises an error that any
        machine would meet.
        """
        failed: Miss | None = None
        for left in reversed(range(_TRIES)):
            ready = await self._bases.find_ready(request.template)
            if isinstance(ready, Miss):
                self._check_template(request.template)  # a server that has come has told what it has
                return failed or ready
            want = self._find_want(request)
            choice = choose(ready, want, oversize=self.config.oversize == "allow")
            if isinstance(choice, Oversize) and self.config.oversize == "refuse":
                raise self._refuse(want.config)
            if isinstance(choice, Choice):
                choice = self._find_substitution(choice, want, request) or choice
            if isinstance(choice, Miss):
                return failed or choice
            try:
                return await self._give(choice, want, request)
            except VMForkError as error:
                self._check_open()
                if not error.mendable:
                    raise
                failed = Miss(error.code, error.message)
                # A second try mends neither a template that does not fit nor a time that is over.
                if left and not isinstance(error, (TemplateError, DeadlineExceeded)):
                    self._counts.retries += 1
                    continue
                self._bases.note_failure(choice.base, error)
                break
        assert failed is not None
        return failed

    def _find_want(self, request: Request) -> Want:
        return find_want(request, self._bases, self.config.vm, images=ImageStore(self._instance.places.images))

    def _find_substitution(self, choice: Choice, want: Want, request: Request) -> Miss | None:
        """Why the machine that was asked for cannot be had, when `choice` is another that only looks like it."""
        if request.template:
            return None  # others were not looked at
        if request.config is None:
            asked = self._bases.find_slot()
        else:
            best = choose([*self._bases], want, oversize=self.config.oversize == "allow")
            asked = self._bases.find_slot_of(best.base) if isinstance(best, Choice) else None
        if asked is None or asked.recipe == choice.base.kind.recipe:
            return None
        return asked.miss

    def _check_template(self, name: str) -> None:
        if name and self._bases.find_slot(name) is None:
            there = self._bases.list_templates()
            raise ConfigError(
                "template",
                name,
                f"the factory has no template {name!r}",
                hint=f"it has {', '.join(there) or 'none'}; add it to `templates` in [factory]",
            )

    async def _give(self, choice: Choice, want: Want, request: Request) -> VM:
        base, wanted = choice.base, want.config
        # Once it is adopted, leaving the block ends nothing.
        async with await base.get_base_vm(timeout_s=request.left_s(wanted.fork_timeout_s)) as base_vm:
            # One that came from a server was started as the server's configuration has it.
            check_isolation(base_vm.isolation, self.config.vm.isolation_policy)
            adopted = await base_vm.adopt(
                request.fork_for(base_vm.hardware, want, choice),
                timeout_s=wanted.fork_timeout_s,
                hook_timeout_s=wanted.hook_timeout_s,
            )
        self._bases.note_success(base)
        self._counts.choices[choice.match] += 1
        self._counts.given[base.kind.name] += 1
        kind = base.kind
        origin = Origin(kind=kind.where, reason=choice.match.value, made_from=kind.made_from)
        if not isinstance(base, Listener):
            return VM(*adopted, origin=origin)
        base.report(phases=_phases_of(adopted.timings))
        return VM(*adopted, origin=origin, on_first_exec=lambda seconds: base.report(phases={"first_exec": seconds}))

    async def _boot(self, request: Request, why: Miss) -> VM:
        config = self._find_want(request).config
        # The plan is for this boot alone: one that was kept would name an image or an emulator that is gone. Planning
        # takes 10 ms, and a boot 2 to 3 s under TCG (docs/decisions/0015).
        direct = await DirectFactory.open(config, instance=self._instance)

        async def make() -> Adopted:
            return await (await direct.get_base_vm()).adopt(request.fork, timeout_s=config.boot_timeout_s)

        adopted = await made_again(make, accel=direct.kind.hardware.accel)
        self._counts.given["direct"] += 1
        return VM(*adopted, origin=Origin(kind="booted", reason=why.reason, detail=why.detail))

    def _make_bases(self, config: FactoryConfig) -> Bases:
        return Bases(config, fetch_only=self._fetch_only, instance=self._instance)

    def _note_fallback(self, miss: Miss, request: Request) -> None:
        """Counts that a machine is booted. Raises `FallbackRefused` when none may be."""
        self._bases.report_fallback(miss.reason)
        if self._refuses_fallback(miss, request):
            self._counts.refused[miss.reason] += 1
            raise FallbackRefused(miss.reason, miss.detail)
        self._counts.fallbacks[miss.reason] += 1
        said = about("factory.fallback", template=request.template, error=miss.reason)
        _log.info("booting a machine: %s", miss.detail or miss.reason, extra=said)

    def _refuses_fallback(self, miss: Miss, request: Request) -> bool:
        policy = self.config.fallback
        if policy != "auto":
            return policy == "refuse"
        if isinstance(miss, Oversize):
            return False  # `oversize` says so
        if request.config is not None and not request.template:
            return self._bases.is_warmed
        slot = self._bases.find_slot(request.template)
        return slot is not None and slot.is_warmed

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("factory")
        if self._bound is not None:
            self._bound.check()

    def _refuse(self, wanted: VMConfig) -> ConfigError:
        sizes = ", ".join(spell_size(base.kind.hardware) for base in self._bases)
        return ConfigError(
            "vm",
            wanted,
            f"{spell_size(wanted)} were asked for, what is ready is larger: {sizes}",
            hint='in [factory], take it as it is with oversize = "allow", boot one of that size with "boot", or add a '
            "template of that size to `templates`",
        )


def _phases_of(spent: Timings) -> dict[str, float]:
    phases = {"adopt": spent.answer_s + spent.clock_s + spent.thaw_s}
    return phases | {"fit": spent.fit_s} if spent.fit_s else phases
