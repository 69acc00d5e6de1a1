"""The outer factory over bases that can be made to fail: what is opened, chosen, tried again, booted, and told."""

from __future__ import annotations

import asyncio
import inspect
import socket
from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace

import pytest

from tests.unit.factory.stand_in import TRAITS, StandInFactory, StandInVM, sized
from vmfork.config import FactoryConfig, VMConfig
from vmfork.errors import (
    AdoptError,
    Closed,
    ConfigError,
    FallbackRefused,
    FitError,
    HostError,
    ImageNotFound,
    LaunchError,
    NoRoom,
    SetupError,
    TemplateNotFound,
    TemplateStale,
    VMNotFound,
)
from vmfork.factory import bases, capacity, direct, health, template
from vmfork.factory import factory as factory_module
from vmfork.factory.factory import Factory
from vmfork.host import facts
from vmfork.image import ImageStore
from vmfork.template.kept import KeptRecipe, keeping_recipe
from vmfork.units import MIB

LIMIT_S = 20.0


class Remote(StandInFactory):
    def report(self, **told) -> None:
        self.told.append(told)


class World:
    """What a factory finds: templates by name, a server, and what booting gives."""

    def __init__(self) -> None:
        self.templates: dict[str, StandInFactory] = {}
        self.server: StandInFactory | None = Remote("remote stand-in")
        self.others: list[StandInFactory] = []
        self.direct: dict[VMConfig, StandInFactory] = {}
        self.images = {"default": "aa", "other": "other"}
        self.least_mib = 64
        self.build_gate = asyncio.Event()
        self.build_gate.set()
        self.build_errors: list[Exception] = []
        self.builds = 0
        self.recipes = []
        self.planned = 0

    async def open_direct(self, config, **_):
        self.planned += 1
        made = StandInFactory("direct", sized(config.cpus, config.memory_mib), traits_of(config), shares_memory=False)
        return self.direct.setdefault(config, made)

    async def fetch(self, name, _config, **_):
        if name not in self.templates:
            raise TemplateNotFound(name)
        return self.templates[name]

    async def find(self, name, _config, **_):
        return self.templates.get(name)

    async def ensure(self, name, config, *, recipe=None, **_):
        self.recipes.append(recipe)
        if name in self.templates:
            return self.templates[name]
        self.builds += 1
        await self.build_gate.wait()
        if self.build_errors:
            raise self.build_errors.pop(0)
        return self.add(name, sized(config.cpus, config.memory_mib))

    def add(self, name, hardware) -> StandInFactory:
        self.templates[name] = StandInFactory(f"template {name!r}", hardware, template=name)
        return self.templates[name]

    async def open_remote(self, *_, **__):
        if self.server is None:
            raise HostError("no VM cache server is there")
        return [self.server, *self.others]

    def open_image(self, name, **_):
        if name not in self.images:
            raise ImageNotFound(name)
        return SimpleNamespace(
            kernel_sha256=self.images[name], initramfs_sha256="bb", disk_sha256="", min_memory_mib=self.least_mib
        )


async def until(is_so) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():
            await asyncio.sleep(0)


@pytest.fixture
def rests(monkeypatch) -> SimpleNamespace:
    """What a rest is measured by: it is over once `now_s` says so."""
    clock, make = SimpleNamespace(now_s=0.0), health.Health.__init__
    monkeypatch.setattr(health.Health, "__init__", partialmethod(make, now=lambda: clock.now_s))
    return clock


def traits_of(config) -> dict[str, str]:
    return TRAITS if config.image == "default" else {**TRAITS, "image.kernel": config.image}


@pytest.fixture
def world(monkeypatch) -> World:
    world = World()
    monkeypatch.setattr(direct.DirectFactory, "open", world.open_direct)
    for name in ("fetch", "ensure"):
        monkeypatch.setattr(template.TemplateFactory, name, getattr(world, name))
    monkeypatch.setattr(capacity.Source, "find", world.find)
    monkeypatch.setattr(bases, "open_remote", world.open_remote)
    monkeypatch.setattr(factory_module, "VM", StandInVM)
    monkeypatch.setattr(ImageStore, "open", lambda _store, name: world.open_image(name))
    return world


# The table of `Factory` itself.
def read_matrix() -> list[list[str]]:
    table = inspect.getdoc(Factory).split("```")[1].strip().splitlines()
    assert table[0].split() == ["template", "remote", "cache", "fetch_only", "base"]
    return [line.replace("> 0", ">0").split(maxsplit=4) for line in table[1:]]


MEANING = {"yes": [True], "no": [False], "any": [False, True], "0": [0], ">0": [2]}
MATRIX = [
    pytest.param(template, remote_, cache, fetch_only, row[4], id=" ".join(row[:4]) + f" {template:d}{remote_:d}")
    for row in read_matrix()
    for template in MEANING[row[0]]
    for remote_ in MEANING[row[1]]
    for cache in MEANING[row[2]]
    for fetch_only in MEANING[row[3]]
]


def test_the_matrix_has_each_combination_once() -> None:
    assert len(read_matrix()) == 10
    combinations = [tuple(param.values[:4]) for param in MATRIX]
    assert len(combinations) == len(set(combinations)) == 16


@pytest.mark.parametrize("there", [False, True], ids=["no-template", "template"])
@pytest.mark.parametrize(("template", "remote_", "cache", "fetch_only", "base"), MATRIX)
async def test_the_matrix(world, template, remote_, cache, fetch_only, base, there) -> None:
    if there:
        world.add("factory", sized(1, 256))
    factory = Factory(FactoryConfig(template=template, remote=remote_, cache=cache), fetch_only=fetch_only)
    if base == "ConfigError":
        with pytest.raises(ConfigError, match="a cache cannot be fetched"):
            await factory.open()
        return
    if "when there is none" in base and not there:
        with pytest.raises(TemplateNotFound):
            await factory.open()
        return
    async with factory:
        await factory.get_vm()
        kind = base.split(":")[0]
        inner = {"remote": "remote stand-in", "template": "template 'factory'"}.get(kind.split()[-1], "direct")
        assert factory.stats().given == {f"cache of {inner}" if kind.startswith("cache") else inner: 1}
        assert factory.stats().fallbacks == {}
        assert (factory.stats().cache is not None) == (cache > 0)
        assert world.builds == (inner == "template 'factory'" and not there)


async def test_the_second_factory_of_a_configuration_uses_the_template_of_the_first(world) -> None:
    for _ in range(2):
        async with Factory(FactoryConfig(template=True, cache=4)) as factory:
            await factory.get_vm()
            assert factory.stats().given == {"cache of template 'factory'": 1}
    assert world.builds == 1


async def test_a_request_that_does_not_say_how_much_memory_is_for_what_the_image_needs(world) -> None:
    world.least_mib = 408
    async with Factory(FactoryConfig(template=True)) as factory:
        world.templates["factory"].hardware = sized(1, 408)  # as a build gives it
        for config in (None, VMConfig(), VMConfig(memory_mib=408)):
            assert (await factory.get_vm(config)).hardware.memory_mib == 408
        assert factory.stats().choices == {"exact": 3}
        with pytest.raises(ConfigError, match="1 CPU and 407 MiB were asked for"):
            await factory.get_vm(VMConfig(memory_mib=407))


async def test_a_client_without_the_image_takes_what_the_server_has_unless_it_says_how_much(world) -> None:
    world.images.clear()
    world.server = Remote("remote stand-in", sized(1, 408))
    async with Factory(FactoryConfig(remote=True)) as factory:
        assert (await factory.get_vm()).hardware.memory_mib == 408
        with pytest.raises(ConfigError, match="1 CPU and 256 MiB were asked for"):
            await factory.get_vm(VMConfig(memory_mib=256))


@pytest.mark.parametrize("build", ["now", "background"])
@pytest.mark.parametrize(
    ("there", "wants_template", "most"),
    [(True, True, 16), (False, True, 12), (False, False, 3)],
    ids=["template-there", "template-to-build", "booted"],
)
async def test_a_pool_that_is_too_large_is_refused_before_anything_is_made(
    world, monkeypatch, build, there, wants_template, most
) -> None:
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 1024 * MIB)
    if there:
        world.add("factory", sized(1, 256))
    config = FactoryConfig(template=wants_template, build=build, cache=most + 1)
    with pytest.raises(ConfigError, match=f"{most + 1} machines of .* each need .*the host has 1 GiB") as refused:
        await Factory(config).open()
    assert refused.value.hint == f"give at most {most}"
    assert (world.builds, world.planned) == (0, 0)
    async with Factory(replace(config, cache=most)) as factory:
        await factory.get_vm()


async def test_a_remote_factory_without_a_server_says_so(world) -> None:
    world.server = None
    with pytest.raises(HostError, match="no VM cache server"):
        await Factory(FactoryConfig(remote=True)).open()


async def test_direct_boots_what_is_asked_whatever_its_size(world) -> None:
    """A base that boots is as large as the request: there is nothing to refuse, and nothing to fall back from."""
    async with Factory() as factory:
        for config in (VMConfig(memory_mib=128), VMConfig(cpus=2), VMConfig(image="other")):
            assert (await factory.get_vm(config)).hardware.memory_mib == config.memory_mib
        assert (factory.stats().fallbacks, factory.stats().choices) == ({}, {"exact": 3})


async def test_each_boot_is_planned_for_itself(world) -> None:
    """A plan that was kept would name an image that was rebuilt since, whose folder is gone."""
    async with Factory() as factory:
        for _ in range(3):
            await factory.get_vm()
        assert world.planned == 3
    world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        await factory.get_vm()
        assert (world.planned, factory.stats().fallbacks) == (3, {})


async def test_a_template_that_went_stale_between_two_looks_is_built_again(world) -> None:
    template = world.add("factory", sized(1, 256))
    async with Factory(FactoryConfig(template=True, build="background")) as factory:
        template.errors = [TemplateStale("factory", "qemu.version", "7.2.1", "7.2.2")]
        await factory.get_vm()
        await until(lambda: template.rebuilt and not factory.stats().building)
        assert (template.rebuilt, factory.stats().fallbacks) == (1, {"template-stale": 1})
        await factory.get_vm()
        assert factory.stats().given["template 'factory'"] == 1


async def test_a_build_is_begun_for_its_own_template_alone(world) -> None:
    other = world.add("other", sized(1, 256))
    async with Factory(FactoryConfig(template=True, build="background", templates=("other",))) as factory:
        await until(lambda: not factory.stats().building)
        other.refresh_error = TemplateNotFound("other")
        await factory.get_vm()
        assert (world.builds, factory.stats().fallbacks) == (1, {})


async def test_a_differing_trait_is_booted_and_counted(world) -> None:
    async with Factory(FactoryConfig(template=True)) as factory:
        await factory.get_vm(VMConfig(image="other"))
        assert (factory.stats().fallbacks, factory.stats().given) == ({"image.kernel": 1}, {"direct": 1})


async def test_the_best_template_is_taken_and_why_is_counted(world) -> None:
    world.add("small", sized(1, 256, max_cpus=4, max_memory_mib=2048))
    world.add("medium", sized(1, 512, max_cpus=4, max_memory_mib=2048))
    world.add("wide", sized(2, 512))
    config = FactoryConfig(templates=("small", "medium", "wide"))
    async with Factory(config) as factory:
        for wanted in (
            VMConfig(),
            VMConfig(memory_mib=512),
            VMConfig(memory_mib=640),
            VMConfig(cpus=2, memory_mib=512),
        ):
            vm = await factory.get_vm(wanted)
            grown = (1, 640) if wanted.memory_mib == 640 else (None, None)
            assert (vm.base.request.cpus, vm.base.request.memory_mib) == grown
        assert factory.stats().given == {"template 'small'": 1, "template 'medium'": 2, "template 'wide'": 1}
        assert factory.stats().choices == {"exact": 3, "grown": 1}
        await factory.get_vm(VMConfig(memory_mib=4096))
        assert factory.stats().fallbacks == {"memory_mib": 1}


async def test_smaller_than_all_is_refused_or_allowed_never_silent(world) -> None:
    world.add("large", sized(2, 1024))
    async with Factory(FactoryConfig(templates=("large",))) as factory:
        with pytest.raises(ConfigError, match=r"1 CPU and 256 MiB were asked for.*larger: 2 CPU and 1 GiB") as caught:
            await factory.get_vm(VMConfig())
        assert "oversize" in caught.value.hint
    async with Factory(FactoryConfig(templates=("large",), oversize="allow")) as factory:
        assert (await factory.get_vm(VMConfig())).hardware.memory_mib == 1024
        assert factory.stats().choices == {"larger": 1}
    async with Factory(FactoryConfig(templates=("large",), oversize="boot")) as factory:
        assert (await factory.get_vm(VMConfig())).hardware.memory_mib == 256
        assert factory.stats().fallbacks == {"oversize": 1}


async def test_what_was_replaced_by_something_larger_is_not_given_unasked(world) -> None:
    template = world.add("factory", sized(1, 256))
    async with Factory(FactoryConfig(templates=("factory",))) as factory:
        template.hardware = sized(1, 1024)
        with pytest.raises(ConfigError):
            await factory.get_vm(VMConfig())
        # Between the choice and the taking.
        template.hardware = sized(1, 256)
        start = template.get_base_vm

        async def replaced(**options):
            template.hardware = sized(1, 1024)
            return await start(**options)

        template.get_base_vm = replaced
        assert (await factory.get_vm(VMConfig())).hardware.memory_mib == 256
        assert factory.stats().fallbacks == {"template-stale": 1}
        assert template.alive() == []


@pytest.mark.parametrize(
    "error",
    [
        LaunchError("it ended", argv=(), exit_code=1),
        HostError("no room"),
        AdoptError("machine-id", "refused"),
        VMNotFound("0123456789ab"),
    ],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("where", ["start", "adopt"])
async def test_a_fork_that_fails_is_tried_once_more_and_then_booted(world, error, where) -> None:
    template = world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        errors = template.errors if where == "start" else template.adopt_errors
        errors.append(error)
        assert (await factory.get_vm()).base in template.made
        assert (factory.stats().retries, factory.stats().fallbacks) == (1, {})
        errors += [error, error]
        assert (await factory.get_vm()).base not in template.made
        assert (factory.stats().retries, factory.stats().fallbacks) == (2, {error.code: 1})
        assert len(template.alive()) == 1


async def test_a_machine_that_cannot_be_grown_is_closed_and_another_tried(world) -> None:
    template = world.add("one", sized(1, 256, max_memory_mib=1024))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        template.adopt_errors = [FitError("1 GiB", "the guest kept it")]
        await factory.get_vm(VMConfig(memory_mib=512))
        assert (len(template.made), len(template.alive()), factory.stats().retries) == (2, 1, 1)
        template.adopt_errors = [FitError("1 GiB", "the guest kept it")] * 2
        await factory.get_vm(VMConfig(memory_mib=512))
        assert (len(template.alive()), factory.stats().fallbacks) == (1, {"fit": 1})


async def test_a_machine_that_is_kept_by_less_than_is_required_is_closed_and_one_is_booted(world) -> None:
    """One of a pool or a server was started by somebody else's configuration; one that is booted, by ours."""
    template = world.add("one", sized(1, 256))
    required = VMConfig(require_isolation="full")  # what stands in for machines has `namespaces`
    async with Factory(FactoryConfig(vm=required, templates=("one",))) as factory:
        await factory.get_vm()
        assert template.made
        assert (template.alive(), factory.stats().given) == ([], {"direct": 1})


async def test_a_host_without_room_is_told_and_nothing_larger_is_booted(world) -> None:
    """A booted machine takes more than the fork that had no room."""
    template = world.add("factory", sized(1, 256))
    template.errors = [NoRoom("memory", "128 MiB of memory are needed, and 5 MiB can be promised")]
    async with Factory(FactoryConfig(template=True, fallback="boot")) as factory:
        with pytest.raises(NoRoom, match="5 MiB can be promised"):
            await factory.get_vm()
        assert world.planned == 0
        assert not factory.stats().quarantined
        await factory.get_vm()  # there is room now
        assert (factory.stats().fallbacks, factory.stats().retries) == ({}, 0)


async def test_a_hook_that_fails_is_the_users(world) -> None:
    template = world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        template.adopt_errors.append(SetupError("hook after.d/10", "exit status 1"))
        with pytest.raises(SetupError):
            await factory.get_vm()
        assert (factory.stats().retries, factory.stats().fallbacks) == (0, {})


async def test_its_times_go_to_the_machine(world) -> None:
    world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        vm = await factory.get_vm(ttl_s=3, idle_ttl_s=2)
        assert (vm.base.request.ttl_s, vm.base.request.idle_ttl_s) == (3, 2)
        vm = await factory.get_vm()
        assert (vm.base.request.ttl_s, vm.base.request.idle_ttl_s) == (0, 0)


async def test_a_wrong_environment_costs_no_machine(world) -> None:
    template = world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        with pytest.raises(ConfigError):
            await factory.get_vm(env={"A=B": "c"})
        with pytest.raises(ConfigError):
            await factory.get_vm(files={"relative": "x"})
        with pytest.raises(ConfigError, match="ttl_s"):
            await factory.get_vm(ttl_s=-1)
        assert template.made == []


async def test_a_template_that_keeps_failing_rests_and_the_statistics_say_so(world, rests) -> None:
    template = world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        template.errors = [HostError("torn page")] * 6
        for _ in range(4):
            await factory.get_vm()
        stats = factory.stats()
        assert (stats.fallbacks, stats.retries) == ({"host": 3, "quarantined": 1}, 3)
        assert stats.quarantined == {"template 'one'": "torn page"}
        rests.now_s += health.REST_S
        await factory.get_vm()
        assert (factory.stats().given["template 'one'"], factory.stats().quarantined) == (1, {})


async def test_another_template_serves_while_one_rests(world) -> None:
    bad, good = world.add("bad", sized(1, 256)), world.add("good", sized(1, 256))
    async with Factory(FactoryConfig(templates=("bad", "good"))) as factory:
        bad.errors = [HostError("torn page")] * 6
        for _ in range(4):
            await factory.get_vm()
        assert factory.stats().given == {"direct": 3, "template 'good'": 1}
        assert len(good.made) == 1


async def test_a_pool_that_is_merely_empty_does_not_rest(world) -> None:
    template = world.add("factory", sized(1, 256))
    async with Factory(FactoryConfig(template=True, build="background", cache=1)) as factory:
        template.gate.clear()
        for _ in range(5):
            await factory.get_vm(timeout_s=0)
        assert factory.stats().quarantined == {}
        assert factory.stats().fallbacks.keys() == {"deadline"}
        template.gate.set()


async def test_a_template_that_is_gone_falls_back_with_its_reason(world) -> None:
    template = world.add("one", sized(1, 256))
    async with Factory(FactoryConfig(templates=("one",))) as factory:
        template.refresh_error = TemplateNotFound("one")
        await factory.get_vm()
        assert factory.stats().fallbacks == {"template-not-found": 1}


async def test_one_build_in_the_background_while_callers_are_booted(world) -> None:
    world.build_gate.clear()
    async with Factory(FactoryConfig(template=True, build="background", cache=1)) as factory:
        await asyncio.gather(*(factory.get_vm() for _ in range(5)))
        stats = factory.stats()
        assert (stats.building, stats.fallbacks, world.builds) == (True, {"template-not-ready": 5}, 1)
        world.build_gate.set()
        await until(lambda: not factory.stats().building)
        await factory.get_vm()
        assert factory.stats().given["cache of template 'factory'"] == 1


@pytest.mark.parametrize("error", [HostError("no space"), RuntimeError("a bug")], ids=["host", "bug"])
async def test_a_build_that_failed_is_told_and_tried_again_after_a_rest(world, error, rests) -> None:
    world.build_errors = [error]
    async with Factory(FactoryConfig(template=True, build="background")) as factory:
        await until(lambda: factory.stats().build_error)
        await factory.get_vm()
        await factory.get_vm()
        assert (factory.stats().build_error, factory.stats().fallbacks) == (str(error), {"template-not-ready": 2})
        assert world.builds == 1
        rests.now_s += health.REST_S
        await factory.get_vm()
        await until(lambda: world.builds == 2 and not factory.stats().building)
        await factory.get_vm()
        assert (factory.stats().build_error, factory.stats().given["template 'factory'"], world.builds) == ("", 1, 2)


async def test_a_template_removed_later_is_built_again_in_the_background(world) -> None:
    template = world.add("factory", sized(1, 256))
    async with Factory(FactoryConfig(template=True, build="background")) as factory:
        template.refresh_error = TemplateNotFound("factory")
        await factory.get_vm()
        assert factory.stats().fallbacks == {"template-not-found": 1}
        await until(lambda: template.rebuilt == 1 and not factory.stats().building)
        template.refresh_error = None
        await factory.get_vm()
        assert factory.stats().given["template 'factory'"] == 1


async def test_closing_ends_a_build(world) -> None:
    world.build_gate.clear()
    factory = await Factory(FactoryConfig(template=True, build="background")).open()
    await factory.get_vm()
    await factory.aclose()
    assert not factory.stats().building
    with pytest.raises(Closed):
        await factory.get_vm()


async def test_an_opening_that_fails_leaves_nothing_and_can_be_repeated(world) -> None:
    config = FactoryConfig(template=True, cache=1, templates=("missing",), build="background")
    first = world.add("factory", sized(1, 256))
    factory = Factory(config)
    with pytest.raises(TemplateNotFound):
        await factory.open()
    assert (first.closed, first.alive()) == (True, [])
    world.add("missing", sized(2, 256))
    async with factory:
        assert len([*factory._bases]) == 2


async def test_closing_while_it_opens_leaves_nothing(world) -> None:
    world.build_gate.clear()
    factory = Factory(FactoryConfig(template=True, cache=1))
    opening = asyncio.create_task(factory.open())
    await asyncio.sleep(0)
    await factory.aclose()
    world.build_gate.set()
    with pytest.raises(Closed):
        await opening
    assert world.templates["factory"].closed


async def test_ten_who_wait_get_closed_when_the_factory_is(world) -> None:
    template = world.add("factory", sized(1, 256))
    template.gate.clear()
    async with Factory(FactoryConfig(template=True, cache=1, build="background")) as factory:
        asking = [asyncio.create_task(factory.get_vm()) for _ in range(10)]
        while factory.stats().cache.waiting < 10:
            await asyncio.sleep(0)
        await factory.aclose()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Closed] * 10
        assert template.alive() == []
        template.gate.set()


async def test_a_remote_machine_and_a_fallback_are_told_to_the_server(world) -> None:
    async with Factory(FactoryConfig(remote=True)) as factory:
        vm = await factory.get_vm()
        vm.listener(0.5)
        assert world.server.told == [{"phases": {"adopt": 0.003}}, {"phases": {"first_exec": 0.5}}]
        world.server.errors = [Closed("the VM cache server", "it is ending")] * 2
        await factory.get_vm()
        assert (world.server.told[-1], factory.stats().fallbacks) == ({"fallback": "closed"}, {"closed": 1})
        await factory.get_vm(VMConfig(image="other"))
        assert world.server.told[-1] == {"fallback": "image.kernel"}


async def test_a_server_that_holds_another_kind_now_is_asked_again_or_left(world) -> None:
    """What was chosen for the former kind is not taken of the new one."""
    server = world.server
    async with Factory(FactoryConfig(remote=True)) as factory:
        start = server.get_base_vm

        async def other(**_):
            server.hardware, server.get_base_vm = sized(4, 4096), start
            raise HostError("it gives machines of another kind")

        server.get_base_vm = other
        with pytest.raises(ConfigError, match="larger: 4 CPU"):
            await factory.get_vm(VMConfig())
        assert server.made == []
        # Who asks for nothing in particular takes the new one.
        assert (await factory.get_vm()).hardware.cpus == 4


async def test_who_asks_for_nothing_in_particular_gets_what_the_base_is(world) -> None:
    """With another size in the server's file the documented client booted every machine."""
    world.server.hardware, world.server.traits = sized(2, 512), {**TRAITS, "kernel_args": "quiet", "image.kernel": "x"}
    async with Factory(FactoryConfig(remote=True)) as factory:
        vm = await factory.get_vm()
        assert (vm.base in world.server.made, vm.base.request.grows, factory.stats().choices) == (
            True,
            False,
            {"exact": 1},
        )
        # Booted in its place, it is of the same configuration.
        world.server.errors = [HostError("gone")] * 2
        assert (await factory.get_vm()).hardware.memory_mib == 512
        (booted,) = world.direct
        assert (booted.image, booted.cpus, booted.memory_mib) == ("default", 2, 512)
        assert (booted.kernel_args, booted.aslr, booted.cpu_model) == ("quiet", "off", "")
        assert factory.stats().fallbacks == {"host": 1}
    # Time limits and the emulator's path ask for nothing.
    async with Factory(FactoryConfig(vm=VMConfig(fork_timeout_s=5, qemu="/none"), remote=True)) as factory:
        assert (await factory.get_vm()).hardware.memory_mib == 512
    async with Factory(FactoryConfig(vm=VMConfig(memory_mib=320), remote=True)) as factory:
        assert (await factory.get_vm()).hardware.memory_mib == 320
        assert factory.stats().fallbacks == {"kernel_args": 1}


async def test_the_first_of_several_is_what_nothing_in_particular_means(world) -> None:
    first, second = world.add("large", sized(2, 1024)), world.add("small", sized(1, 256))
    async with Factory(FactoryConfig(templates=("large", "small"))) as factory:
        await factory.get_vm()
        assert (len(first.made), len(second.made)) == (1, 0)
        # What is smaller, and cannot grow, is no substitute.
        first.errors = [HostError("torn page")] * 2
        assert (await factory.get_vm()).hardware.memory_mib == 1024
        assert (factory.stats().given["direct"], len(second.made)) == (1, 0)


async def test_a_factory_without_arguments_has_the_configuration_of_the_commands(world, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmfork.toml").write_text('[vm]\nmemory_mib = 512\n[factory]\ntemplates = ["one"]\n')
    world.add("one", sized(1, 512))
    async with Factory() as factory:
        assert (await factory.get_vm()).hardware.memory_mib == 512
        assert factory.stats().given == {"template 'one'": 1}
    (tmp_path / "vmfork.toml").write_text("[factory]\ncache = -1\n")
    with pytest.raises(ConfigError, match=r"factory\.cache.*from .*vmfork\.toml"):
        Factory()


async def test_a_pool_that_a_server_keeps_is_not_kept_twice(world, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    endpoint = tmp_path / "cache.sock"
    (tmp_path / "vmfork.toml").write_text(f'[factory]\ncache = 1\nendpoint = "{endpoint}"\n')
    async with Factory() as factory:
        await factory.get_vm()
        assert factory.stats().given == {"cache of direct": 1}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(endpoint))
        server.listen()
        async with Factory() as factory:
            await factory.get_vm()
            assert factory.stats().given == {"remote stand-in": 1}
            assert factory.stats().cache is None


async def test_nothing_stands_in_for_what_was_warmed_unless_it_may(world) -> None:
    """A machine that was booted has neither warm-up nor hooks: the same request got another machine, without a word."""
    template = world.add("web", sized(1, 256))
    template.recipe = "warm"
    config = FactoryConfig(templates=("web",))
    async with Factory(config) as factory:
        template.refresh_error = TemplateNotFound("web")
        for asked in ({}, {"config": VMConfig(kernel_args="quiet")}, {"template": "web"}):
            with pytest.raises(FallbackRefused) as caught:
                await factory.get_vm(**asked)
            assert caught.value.reason == "template-not-found"
        stats = factory.stats()
        assert (stats.refused, stats.fallbacks, stats.given, world.planned) == (
            {"template-not-found": 3},
            {},
            {},
            0,
        )
        # One that may be had again is.
        template.refresh_error = None
        assert (await factory.get_vm()).source.kind == "template"
    async with Factory(replace(config, fallback="boot")) as factory:
        vm = await factory.get_vm(VMConfig(kernel_args="quiet"))
        assert (vm.source.kind, vm.source.reason) == ("booted", "kernel_args")
        assert str(vm.source) == "booted (template 'web' has kernel_args '', 'quiet' was asked for)"
    bare = world.add("bare", sized(1, 256))
    bare.refresh_error = TemplateNotFound("bare")
    async with Factory(FactoryConfig(templates=("bare",))) as factory:
        assert (await factory.get_vm()).source.reason == "template-not-found"
    async with Factory(FactoryConfig(templates=("bare",), fallback="refuse")) as factory:
        with pytest.raises(FallbackRefused, match="no template is named 'bare'"):
            await factory.get_vm()


async def test_a_larger_one_is_booted_where_oversize_says_so_even_beside_what_was_warmed(world) -> None:
    world.add("large", sized(2, 1024)).recipe = "warm"
    config = FactoryConfig(templates=("large",), oversize="boot")
    async with Factory(config) as factory:
        assert (await factory.get_vm(VMConfig())).source.reason == "oversize"
    async with Factory(replace(config, fallback="refuse")) as factory:
        with pytest.raises(FallbackRefused, match="is larger: 2 CPU and 1 GiB"):
            await factory.get_vm(VMConfig())


async def test_what_is_missing_at_opening_is_looked_for_at_each_request(world) -> None:
    config = FactoryConfig(templates=("late", "there"), missing="boot")
    world.add("there", sized(1, 256)).recipe = "other"
    async with Factory(config) as factory:
        assert (await factory.get_vm()).source.reason == "template-not-found"
        assert (await factory.get_vm(template="there")).source.made_from == "template 'there'"
        world.add("late", sized(1, 320))
        assert (await factory.get_vm()).source.made_from == "template 'late'"
        assert factory.stats().fallbacks == {"template-not-found": 1}
    # A server that is not up yet.
    server, world.server = world.server, None
    with pytest.raises(HostError, match="no VM cache server"):
        await Factory(FactoryConfig(remote=True)).open()
    async with Factory(FactoryConfig(remote=True, missing="boot")) as factory:
        vm = await factory.get_vm()
        assert (vm.source.kind, vm.source.detail) == ("booted", "no VM cache server is there")
        # While it is away, nobody can tell which templates it has.
        assert (await factory.get_vm(template="py")).source.detail == "no VM cache server is there"
        world.server = server
        with pytest.raises(ConfigError, match="the factory has no template 'py'"):
            await factory.get_vm(template="py")
        assert (await factory.get_vm()).base in server.made
    with pytest.raises(TemplateNotFound):
        await Factory(FactoryConfig(templates=("gone",))).open()


async def test_what_was_warmed_and_is_missing_is_refused_as_far_as_its_recipe_is_known(world, instance) -> None:
    recipe = KeptRecipe(config=VMConfig(memory_mib=320), warm_up=("echo warm",))
    with keeping_recipe("lost", recipe, places=instance):
        pass
    try:
        async with Factory(FactoryConfig(templates=("lost",), missing="boot")) as factory:
            with pytest.raises(FallbackRefused, match="no template is named 'lost'"):
                await factory.get_vm()
        async with Factory(FactoryConfig(templates=("lost",), missing="boot", fallback="boot")) as factory:
            assert (await factory.get_vm()).hardware.memory_mib == 320  # what the template was
    finally:
        (instance.recipes / "lost.json").unlink()


async def test_two_warmed_templates_of_one_image_and_size_are_told_apart(world) -> None:
    """The second was given for the first while that rested."""
    py, node = world.add("py", sized(1, 256)), world.add("node", sized(1, 256))
    py.recipe, node.recipe = "python", "javascript"
    async with Factory(FactoryConfig(templates=("py", "node"))) as factory:
        for name, template in (("node", node), ("py", py)):
            assert (await factory.get_vm(template=name)).base in template.made
            assert (await factory.get_vm(VMConfig(), template=name)).base in template.made
        with pytest.raises(ConfigError, match="the factory has no template 'ruby'") as caught:
            await factory.get_vm(template="ruby")
        assert "it has py, node" in caught.value.hint
        py.refresh_error = TemplateStale("py", "qemu.version", "1", "2")
        for asked in ({}, {"config": VMConfig()}):
            with pytest.raises(FallbackRefused, match=r"qemu\.version"):
                await factory.get_vm(**asked)
        # Of the same recipe, one stands in for the other.
        node.recipe = "python"
        assert (await factory.get_vm()).base in node.made
    async with Factory() as direct:
        with pytest.raises(ConfigError, match="no template 'py'"):
            await direct.get_vm(template="py")


async def test_a_pool_is_kept_of_each_template(world) -> None:
    """With `templates` and a cache, booted machines were kept beside templates that were forked one by one."""
    world.add("py", sized(1, 256)), world.add("node", sized(2, 512))
    async with Factory(FactoryConfig(templates=("py", "node"), cache=1)) as factory:
        for name in ("py", "node"):
            vm = await factory.get_vm(template=name)
            assert (vm.source.kind, vm.source.made_from) == ("pool", f"template {name!r}")
        assert set(factory.stats().given) == {"cache of template 'py'", "cache of template 'node'"}
        assert (world.planned, factory.stats().fallbacks) == (0, {})
        assert set(factory.stats().pools) == set(factory.stats().given)
        assert factory.stats().cache == factory.stats().pools["cache of template 'py'"]


async def test_a_server_of_several_templates_is_asked_for_each(world) -> None:
    world.server.template, world.server.name = "py", "remote py"
    world.others = [Remote("remote node", sized(2, 512), template="node")]
    async with Factory(FactoryConfig(remote=True)) as factory:
        assert (await factory.get_vm(template="node")).base in world.others[0].made
        assert (await factory.get_vm()).base in world.server.made
        with pytest.raises(ConfigError, match="no template 'ruby'"):
            await factory.get_vm(template="ruby")
        # One server is told of a fallback once.
        world.server.errors = [HostError("gone")] * 2
        await factory.get_vm()
        told = [*world.server.told, *world.others[0].told]
        assert [each for each in told if "fallback" in each] == [{"fallback": "host"}]


async def test_a_template_that_was_made_by_another_recipe_is_asked_of_nobody(world, tmp_path) -> None:
    file = tmp_path / "web.toml"
    config = FactoryConfig(template=True, recipe=str(file))
    with pytest.raises(ConfigError, match="cannot read"):
        await Factory(config).open()
    file.write_text('warm_up = ["echo warm"]')
    async with Factory(config) as factory:
        await factory.get_vm()
        assert [recipe and recipe.warm_up for recipe in world.recipes] == [("echo warm",)]
    # While it is built in the background, what it will be is known.
    world.templates.clear()
    world.build_gate.clear()
    async with Factory(replace(config, build="background")) as factory:
        with pytest.raises(FallbackRefused, match="template 'factory' is being built"):
            await factory.get_vm()


async def test_another_size_of_the_same_is_asked_for_by_its_numbers(world) -> None:
    world.server.hardware, world.server.traits = sized(1, 512, max_cpus=4), {**TRAITS, "kernel_args": "quiet"}
    async with Factory(FactoryConfig(remote=True)) as factory:
        vm = await factory.get_vm(cpus=2)
        assert (vm.base.request.cpus, vm.base.request.memory_mib, vm.source.reason) == (2, 512, "grown")
        vm = await factory.get_vm(memory_mib=1024)
        assert (vm.hardware.memory_mib, vm.source.kind, vm.source.reason) == (1024, "booted", "memory_mib")
        (booted,) = world.direct
        assert (booted.kernel_args, booted.cpus) == ("quiet", 1)


def test_a_size_of_the_pool_that_is_no_number_is_refused() -> None:
    for value in (-1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match=r"factory\.cache"):
            FactoryConfig(cache=value)


@pytest.mark.parametrize(("field", "known"), [("oversize", "refuse, allow or boot"), ("build", "now or background")])
def test_an_unknown_policy_is_refused(field, known) -> None:
    with pytest.raises(ConfigError, match="'perhaps' is not known") as caught:
        FactoryConfig(**{field: "perhaps"})
    assert caught.value.hint == f"use {known}"
