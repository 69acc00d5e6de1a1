"""The pool in one process with real machines: dead and hanging ones, a replaced template, closing, sizes."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vmfork.aio import Factory, Template
from vmfork.config import FactoryConfig, Instance, VMConfig, find_places
from vmfork.errors import Closed, ConfigError, FitError, HostError
from vmfork.factory import cache
from vmfork.factory.cache import CacheFactory
from vmfork.factory.template import TemplateFactory
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.machine import base as base_module
from vmfork.machine.fit import fit
from vmfork.wire.command import Command

# In a test host (tools/hosts/kvm) that others keep busy a template takes a minute and a half to build.
pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.limit_s(900)]

LIMIT_S = 240.0
# One CPU and 256 MiB more may be asked for.
ROOMY = VMConfig(memory_mib=320, max_cpus=2, max_memory_mib=576)


@pytest.fixture(autouse=True)
def a_busy_host(monkeypatch) -> None:
    """A machine that is only slow to be scheduled is not one that stands still."""
    monkeypatch.setattr(cache, "CHECK_LIMIT_S", 4.0)


@asynccontextmanager
async def opened(name: str, size: int = 2, **options):
    """A factory over a full pool of forks of `name`; nothing of it is left afterwards."""
    config = FactoryConfig(template=True, template_name=name, build="background", cache=size, **options)
    async with Factory(config) as factory:
        (pool,) = factory._bases
        await pool.wait_full(timeout_s=LIMIT_S)
        yield factory, pool
    assert list(find_places().vms.iterdir()) == []


@pytest.fixture(scope="module")
def roomy(instance):
    template = asyncio.run(Template.build("roomy", ROOMY))
    yield "roomy"
    asyncio.run(template.remove())


async def size_in_guest(vm) -> tuple[int, int]:
    """CPUs that programs see, and MemTotal in MiB."""
    told = await vm.shell("nproc; awk '/MemTotal/ {print $2}' /proc/meminfo", check=True, timeout_s=30)
    cpus, total_kib = told.stdout.split()
    return int(cpus), int(total_kib) // 1024


@pytest.mark.qemu
async def test_taken_machines_are_unique_current_and_the_callers(template_name) -> None:
    async with opened(template_name) as (factory, pool):
        held = {vm.id for vm in pool.status().vms}
        async with (
            await factory.get_vm(env={"WHO": "me"}, files={"/root/mine": "x"}) as one,
            await factory.get_vm() as two,
        ):
            assert {one.id, two.id} == held
            for command in ("cat /proc/sys/kernel/random/uuid", "cat /etc/machine-id", "hostname"):
                assert (await one.shell(command)).stdout != (await two.shell(command)).stdout
            assert await one.measure_clock_skew() < 0.25
            assert (await one.shell("echo $WHO; cat /root/mine")).stdout == "me\nx"
            assert factory.stats().cache.hits == 2


async def test_a_machine_killed_while_parked_is_replaced(template_name) -> None:
    async with opened(template_name) as (factory, pool):
        victim = pool.status().vms[0]
        os.kill(victim.pid, signal.SIGKILL)
        async with await factory.get_vm() as vm:
            assert vm.id != victim.id
            assert (await vm.exec(["true"])).ok
        await pool.wait_full(timeout_s=LIMIT_S)
        assert (factory.stats().cache.dropped, factory.stats().fallbacks) == ({"unhealthy": 1}, {})


async def test_a_stopped_qemu_is_replaced_within_the_deadline(template_name) -> None:
    async with opened(template_name) as (factory, pool):
        victim, other = pool.status().vms
        os.kill(victim.pid, signal.SIGSTOP)
        async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
            # Who takes one does not wait for the next to be made.
            assert (vm.id, vm.template) == (other.id, template_name)
        await pool.wait_full(timeout_s=LIMIT_S)
        assert factory.stats().cache.dropped == {"unhealthy": 1}
        assert not Path(f"/proc/{victim.pid}").exists()


async def test_one_that_stops_unasked_is_found_by_the_pool_itself(template_name) -> None:
    async with await CacheFactory.open(
        await TemplateFactory.fetch(template_name, VMConfig(), instance=Instance()),
        1,
        check_interval_s=0.2,
    ) as pool:
        await pool.wait_full(timeout_s=LIMIT_S)
        os.kill(pool.status().vms[0].pid, signal.SIGSTOP)
        async with asyncio.timeout(LIMIT_S):
            while pool.status().dropped != {"unhealthy": 1}:
                await asyncio.sleep(0.05)
        await pool.wait_full(timeout_s=LIMIT_S)


async def test_ten_who_wait_get_closed_and_no_machine_is_left(template_name) -> None:
    async with opened(template_name, 1) as (factory, pool):
        asking = [asyncio.create_task(factory.get_vm()) for _ in range(11)]
        while pool.status().waiting < 10:
            await asyncio.sleep(0)
        await factory.aclose()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        given = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert {type(outcome) for outcome in outcomes if outcome not in given} == {Closed}
        for vm in given:
            await vm.aclose()


async def test_a_cancelled_caller_costs_no_machine(template_name) -> None:
    async with opened(template_name) as (factory, pool):
        for delay_s in (0.0, 0.001, 0.004):
            taking = asyncio.create_task(factory.get_vm())
            await asyncio.sleep(delay_s)
            taking.cancel()
            outcome = (await asyncio.gather(taking, return_exceptions=True))[0]
            if not isinstance(outcome, BaseException):
                await outcome.aclose()
        await pool.wait_full(timeout_s=LIMIT_S)
        async with asyncio.timeout(LIMIT_S):  # one whose taker left may be on its way out yet
            while len(list(find_places().vms.iterdir())) != pool.status().ready:
                await asyncio.sleep(0.05)


async def test_a_template_replaced_under_a_full_pool(instance) -> None:
    await Template.build("changing", VMConfig(), warm_up=["echo old > /root/age"])
    try:
        async with opened("changing") as (factory, pool):
            before = {vm.id for vm in pool.status().vms}
            await Template.build("changing", VMConfig(), warm_up=["echo new > /root/age"], replace=True)
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert await vm.read_file("/root/age") == b"new\n"
            await pool.wait_full(timeout_s=LIMIT_S)
            assert before.isdisjoint({vm.id for vm in pool.status().vms})
            assert factory.stats().cache.dropped == {"replaced": 2}
            # This factory may build: a template that was removed is made again as it was made.
            await (await Template.open("changing")).remove()
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template == "changing"
                assert await vm.read_file("/root/age") == b"new\n"
            assert factory.stats().fallbacks == {}
    finally:
        if "changing" in await Template.list():
            await (await Template.open("changing")).remove()


async def test_a_pool_over_direct_boots() -> None:
    async with Factory(FactoryConfig(cache=1)) as factory, await factory.get_vm(timeout_s=LIMIT_S) as vm:
        assert vm.template == ""
        assert factory.stats().given == {"cache of direct": 1}
        assert (await vm.exec(["true"])).ok


@pytest.mark.qemu
async def test_a_machine_is_grown_to_the_request_and_its_guest_says_so(roomy) -> None:
    async with opened(roomy, 1, vm=ROOMY) as (factory, _), await factory.get_vm() as plain:
        before_cpus, before_mib = await size_in_guest(plain)
        assert before_cpus == 1
        for cpus, memory_mib in ((2, 320), (1, 576), (2, 448)):
            wanted = VMConfig(cpus=cpus, memory_mib=memory_mib, max_cpus=2, max_memory_mib=576)
            async with await factory.get_vm(wanted, timeout_s=LIMIT_S) as vm:
                have_cpus, have_mib = await size_in_guest(vm)
                assert have_cpus == cpus
                assert abs(have_mib - before_mib - (memory_mib - 320)) <= 8
                assert (vm.hardware.cpus, vm.hardware.memory_mib) == (cpus, memory_mib)
        assert factory.stats().choices == {"exact": 1, "grown": 3}


async def test_a_growth_that_fails_half_way_is_rolled_back_and_the_machine_not_given(roomy, monkeypatch) -> None:
    async with opened(roomy, 1, vm=ROOMY) as (factory, _):
        left: list[tuple[int, bool]] = []

        async def no_room(*_: object) -> None:
            raise HostError("no room, said the test")

        async def watched_fit(running, *, cpus, memory_mib):
            try:
                return await fit(running, cpus=cpus, memory_mib=memory_mib)
            except FitError as error:
                _, online, _ = await running.agent.exec(Command(["nproc"]), timeout_s=30)
                left.append((int(online), error.rolled_back))
                raise

        monkeypatch.setattr(base_module, "fit", watched_fit)
        monkeypatch.setattr(QemuMachine, "add_memory", no_room)
        wanted = VMConfig(cpus=2, memory_mib=576, max_cpus=2, max_memory_mib=576)
        async with await factory.get_vm(wanted, timeout_s=LIMIT_S) as vm:
            assert vm.template == ""
            assert (await size_in_guest(vm))[0] == 2
        assert (left, factory.stats().fallbacks) == ([(1, True)] * 2, {"fit": 1})


async def test_several_forks_are_grown_alike(roomy) -> None:
    template = await Template.open(roomy)
    with pytest.raises(ConfigError, match="max-cpus"):
        await template.fork_many(2, cpus=3)
    vms = await template.fork_many(2, cpus=2, memory_mib=448)
    try:
        assert {(vm.hardware.cpus, vm.hardware.memory_mib) for vm in vms} == {(2, 448)}
        assert {(await size_in_guest(vm))[0] for vm in vms} == {2}
        assert all(vm.timings.fit_s > 0 for vm in vms)
    finally:
        await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_smaller_than_the_template_is_refused_or_allowed(roomy) -> None:
    async with Factory(FactoryConfig(templates=(roomy,))) as factory:
        with pytest.raises(ConfigError, match=r"256 MiB were asked for.*larger: 1 CPU and 320 MiB"):
            await factory.get_vm(VMConfig())
        async with await factory.get_vm() as vm:  # nothing in particular
            assert (vm.template, vm.hardware.memory_mib) == (roomy, 320)
    async with (
        Factory(FactoryConfig(templates=(roomy,), oversize="allow")) as factory,
        await factory.get_vm(VMConfig()) as vm,
    ):
        assert (vm.template, vm.hardware.memory_mib) == (roomy, 320)
        assert factory.stats().choices == {"larger": 1}


async def test_the_template_that_fits_best_is_taken(roomy, template_name) -> None:
    async with Factory(FactoryConfig(templates=(template_name, roomy))) as factory:
        async with await factory.get_vm() as vm:
            assert vm.template == template_name
        async with await factory.get_vm(VMConfig(memory_mib=384)) as vm:
            assert vm.template == roomy
        assert factory.stats().choices == {"exact": 1, "grown": 1}
        assert factory.stats().given == {f"template {template_name!r}": 1, f"template {roomy!r}": 1}


async def test_a_request_larger_than_the_host_is_refused(template_name) -> None:
    async with Factory(FactoryConfig(templates=(template_name,), fallback="boot")) as factory:
        with pytest.raises(ConfigError, match=r"400 GiB.*the host has"):
            await factory.get_vm(VMConfig(memory_mib=400 * 1024))


async def test_built_in_the_background_once_while_callers_are_booted(instance) -> None:
    config = FactoryConfig(template=True, template_name="late", build="background")
    try:
        async with Factory(config) as one, Factory(config) as other:
            async with await one.get_vm() as vm:
                assert vm.template == ""
            assert one.stats().fallbacks == {"template-not-ready": 1}
            async with asyncio.timeout(LIMIT_S):
                while one.stats().building or other.stats().building:
                    await asyncio.sleep(0.05)
            for factory in (one, other):
                async with await factory.get_vm() as vm:
                    assert vm.template == "late"
            generations = [p for p in (find_places().templates / "late").iterdir() if p.is_dir() and not p.is_symlink()]
            assert len(generations) == 1
    finally:
        await (await Template.open("late")).remove()
