"""The pool: filled whatever fails, healthy or replaced, first come first served, closed with nothing left."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from tests.unit.factory.stand_in import StandInFactory
from vmfork.errors import Closed, ConfigError, DeadlineExceeded, HostError, NoRoom, TemplateNotFound, TemplateStale
from vmfork.factory import cache as cache_module
from vmfork.factory import starter
from vmfork.factory.cache import CacheFactory
from vmfork.factory.capacity import check_size
from vmfork.factory.demand import Demand
from vmfork.host import facts
from vmfork.units import MIB

LIMIT_S = 12.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr(starter, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(cache_module, "REFILL_DELAY_S", 0.02)
    monkeypatch.setattr(cache_module, "LEAST_CHECK_LIMIT_S", LIMIT_S)


@asynccontextmanager
async def opened(base: StandInFactory, size: int = 2, *, full: bool = True, **options):
    """A pool over `base`. Afterwards nothing that it held is left, but for what was given out."""
    options.setdefault("check_interval_s", 30.0)
    async with asyncio.timeout(4 * LIMIT_S), await CacheFactory.open(base, size, **options) as pool:
        if full:
            await pool.wait_full(timeout_s=LIMIT_S)
        yield pool
    assert len(base.alive()) <= pool.status().given
    assert base.closed


async def until(is_so) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_machines_are_ready_parked_and_refilled() -> None:
    base = StandInFactory()
    async with opened(base, 3) as pool:
        first = await pool.get_base_vm()
        assert (first.state, first.checked) == ("parked", 1)
        assert pool.status().ready == 2
        await pool.wait_full(timeout_s=LIMIT_S)
        status = pool.status()
        assert (status.given, status.hits, status.misses, status.ready, len(base.made)) == (1, 1, 0, 3, 4)
        await first.aclose()


async def test_starts_are_bounded() -> None:
    base = StandInFactory()
    async with opened(base, 6, concurrency=2):
        assert base.most_at_once == 2


@pytest.mark.parametrize("where", ["start", "park"])
async def test_a_base_that_fails_is_tried_again_after_pauses_that_double(where) -> None:
    base = StandInFactory()
    if where == "start":
        base.errors = [HostError("no room"), RuntimeError("a bug"), HostError("no room 3")]
    else:
        started = base.get_base_vm
        left = [HostError("no room"), RuntimeError("a bug"), HostError("no room 3")]

        async def start(**options):
            vm = await started(**options)
            vm.park_error = left.pop(0) if left else None
            return vm

        base.get_base_vm = start
    async with opened(base, 1) as pool:
        status = pool.status()
        assert (status.failed, status.last_error, status.ready, status.closed) == (3, "no room 3", 1, False)
        gaps = [later - earlier for earlier, later in zip(base.started_at, base.started_at[1:], strict=False)]
        assert all(gap >= pause * 0.99 for gap, pause in zip(gaps, (0.02, 0.04, 0.08), strict=True))
        assert not pool.is_failing
        assert (await pool.get_base_vm()).state == "parked"


async def test_a_pool_waits_for_room_looks_now_and_then_and_tells_it_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(starter, "ROOM_PAUSE_S", 0.05)
    base = StandInFactory()
    base.errors = [NoRoom("memory", "128 MiB are needed") for _ in range(4)]
    async with opened(base, 1) as pool:
        assert (pool.status().failed, pool.status().ready, pool.is_failing) == (0, 1, False)
        assert pool.status().last_error == "the host has no room: 128 MiB are needed"
        gaps = [later - earlier for earlier, later in zip(base.started_at, base.started_at[1:], strict=False)]
        assert len(gaps) == 4
        assert all(gap >= 0.05 * 0.99 for gap in gaps)
    waits = [record for record in caplog.records if getattr(record, "event", "") == "pool.waits"]
    assert [record.error for record in waits] == ["no-room"]


async def test_callers_wait_through_failures() -> None:
    base = StandInFactory()
    base.errors = [HostError("no room")] * 3
    async with opened(base, 1, full=False) as pool:
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)).state == "up"
        assert pool.status().misses == 1


async def test_the_deadline_tells_the_last_failure() -> None:
    base = StandInFactory()
    base.errors = [HostError("no room")] * 1000
    async with opened(base, 1, full=False) as pool:
        await until(lambda: pool.status().failed)
        with pytest.raises(DeadlineExceeded) as caught:
            await pool.get_base_vm(timeout_s=0.05)
        assert "no room" in caught.value.hint
        assert (pool.is_failing, pool.status().waiting) == (True, 0)


async def test_a_pool_that_is_stuck_says_so_at_once_and_goes_on_by_itself() -> None:
    base = StandInFactory()
    base.errors = [HostError("no room")] * 3
    async with opened(base, 1, full=False) as pool, asyncio.timeout(LIMIT_S):
        await pool.wait_stuck()
        with pytest.raises(HostError, match="holds no machine, and its last start failed: no room"):
            await pool.refresh()
        await pool.wait_unstuck()
        await pool.refresh()
        await pool.wait_full()
        # What it holds is given, whatever the starts do.
        base.errors = [HostError("no room")] * 1000
        await pool.get_base_vm()
        await pool.wait_stuck()


class Ensured(StandInFactory):
    """A base whose template can be built again: a build is another generation."""

    async def rebuild(self) -> None:
        self.built = getattr(self, "built", 0) + 1
        self.refresh_error = None
        self.next_generation = f"built {self.built}"


@pytest.mark.parametrize(
    "error", [TemplateStale("one", "qemu.version", "7.2.1", "7.2.2"), TemplateNotFound("one")], ids=["stale", "gone"]
)
async def test_a_template_that_is_gone_or_stale_is_built_again_where_that_is_allowed(error) -> None:
    base = Ensured()
    async with opened(base, 2, rebuild=base.rebuild) as pool:
        base.refresh_error = error
        given = [await pool.get_base_vm(timeout_s=LIMIT_S) for _ in range(3)]
        # A machine of the old template runs on the emulator of its time; where the template was removed, none is given.
        assert given[0].generation == ("one" if isinstance(error, TemplateStale) else "built 1")
        assert given[2].generation == "built 1"
        await pool.wait_full(timeout_s=LIMIT_S)
        assert pool.status().failed == 0


async def test_a_stale_template_that_may_not_be_built_gives_what_is_held_and_then_its_reason() -> None:
    base = StandInFactory()
    async with opened(base, 2) as pool:
        base.refresh_error = TemplateStale("one", "qemu.version", "7.2.1", "7.2.2")
        for _ in range(2):
            await pool.get_base_vm(timeout_s=LIMIT_S)
        with pytest.raises(TemplateStale):
            await pool.get_base_vm(timeout_s=LIMIT_S)
        base.refresh_error = None


async def test_no_time_at_all_takes_what_is_ready_and_waits_for_nothing() -> None:
    base = StandInFactory()
    async with opened(base, 1) as pool:
        base.gate.clear()
        assert (await pool.get_base_vm(timeout_s=0)).state == "parked"
        with pytest.raises(DeadlineExceeded):
            await pool.get_base_vm(timeout_s=0)
        base.gate.set()


@pytest.mark.parametrize("how", ["dead", "bug"])
async def test_a_machine_that_died_while_parked_is_replaced_and_never_given(how) -> None:
    base = StandInFactory()
    async with opened(base, 2) as pool:
        victim = base.made[0]
        victim.check_error = HostError("QEMU ended") if how == "dead" else RuntimeError("a bug")
        taken = await pool.get_base_vm()
        assert taken is base.made[1]
        await until(lambda: victim.state == "ended" and pool.status().ready == 2)
        assert pool.status().dropped == {"unhealthy": 1}


async def test_a_machine_that_hangs_is_replaced_within_the_callers_deadline(monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "CHECK_LIMIT_S", 1000.0)
    monkeypatch.setattr(cache_module, "LEAST_CHECK_LIMIT_S", 0.05)
    base = StandInFactory()
    async with opened(base, 1) as pool:
        base.made[0].check_hangs = True
        base.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await pool.get_base_vm(timeout_s=0.2)
        base.gate.set()
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)) is base.made[1]
        await until(lambda: base.made[0].state == "ended")


async def test_what_nobody_takes_is_looked_at_too(monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "CHECK_LIMIT_S", 0.1)
    monkeypatch.setattr(cache_module, "LEAST_CHECK_LIMIT_S", 0.05)
    base = StandInFactory()
    async with opened(base, 2, check_interval_s=0.02) as pool:
        base.made[0].check_error = HostError("QEMU ended")
        base.made[1].check_hangs = True
        await until(lambda: [vm.state for vm in base.made[:2]] == ["ended", "ended"])
        await pool.wait_full(timeout_s=LIMIT_S)
        assert pool.status().dropped == {"unhealthy": 2}


async def test_a_machine_that_is_too_old_is_replaced() -> None:
    base = StandInFactory()
    async with opened(base, 1, ttl_s=0.05, check_interval_s=0.01) as pool:
        await until(lambda: pool.status().dropped.get("expired", 0) >= 1)
        await until(lambda: base.made[0].state == "ended")
        await pool.wait_full(timeout_s=LIMIT_S)


async def test_tending_survives_what_it_cannot_know() -> None:
    base = StandInFactory()
    async with opened(base, 1, check_interval_s=0.01) as pool:
        base.refresh_error = RuntimeError("a bug")
        await asyncio.sleep(0.05)
        base.refresh_error = None
        base.made[0].check_error = HostError("QEMU ended")
        await until(lambda: pool.status().dropped == {"unhealthy": 1})


async def test_a_replaced_template_replaces_what_is_held() -> None:
    base = StandInFactory()
    async with opened(base, 3) as pool:
        base.next_generation = "two"
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)).generation == "two"
        await pool.wait_full(timeout_s=LIMIT_S)
        assert {vm.generation for vm in base.alive()} == {"two"}
        assert pool.status().dropped == {"replaced": 3}


async def test_the_old_kind_is_not_given_when_a_start_saw_the_new_one_first() -> None:
    """A refill looks at the template too: the base then says that nothing has changed since."""
    base = StandInFactory()
    async with opened(base, 3) as pool:
        await (await pool.get_base_vm()).aclose()
        base.next_generation = "two"
        await until(lambda: len(base.made) == 4)
        assert base.made[3].generation == "two"
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)).generation == "two"


async def test_a_machine_being_made_while_the_template_is_replaced_is_not_given() -> None:
    base = StandInFactory()
    async with opened(base, 1, full=False) as pool:
        base.gate.clear()
        base.generation = base.next_generation = "one"
        await until(lambda: base.at_once or base.made)
        base.next_generation = "two"
        base.gate.set()
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)).generation == "two"


async def test_a_template_that_is_gone_leaves_nothing_to_give() -> None:
    base = StandInFactory()
    async with opened(base, 2) as pool:
        base.refresh_error = TemplateNotFound("one")
        with pytest.raises(TemplateNotFound):
            await pool.get_base_vm(timeout_s=LIMIT_S)
        await until(lambda: base.alive() == [])
        base.refresh_error = None
        assert (await pool.get_base_vm(timeout_s=LIMIT_S)).state != "ended"


async def test_who_waits_is_served_in_the_order_of_asking() -> None:
    base = StandInFactory()
    async with opened(base, 2) as pool:
        base.gate.clear()
        served: list[int] = []

        async def ask(number: int) -> None:
            await pool.get_base_vm(timeout_s=LIMIT_S)
            served.append(number)

        asking = []
        for number in range(12):
            asking.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0)
            if number == 5:
                base.gate.set()  # those who come from now on find machines arriving, and do not overtake
        await asyncio.gather(*asking)
        assert served == sorted(served)
        assert len({vm.identity.vm_id for vm in base.made}) == len(base.made)


async def test_what_is_made_for_a_caller_is_not_exercised_unless_he_goes() -> None:
    base = StandInFactory()
    async with opened(base, 1, full=False) as pool:
        base.gate.clear()
        staying, going = (asyncio.create_task(pool.get_base_vm()) for _ in range(2))
        await until(lambda: pool.status().waiting == 2)
        base.gate.set()
        assert (await staying).state == "up"
        going.cancel()
        await pool.wait_full(timeout_s=LIMIT_S)
        assert [vm.state for vm in base.alive()] == ["up", "parked"]


async def test_ten_who_wait_get_closed_and_nothing_is_left() -> None:
    base = StandInFactory()
    async with opened(base, 2) as pool:
        taken = [await pool.get_base_vm(), await pool.get_base_vm()]
        base.gate.clear()
        asking = [asyncio.create_task(pool.get_base_vm()) for _ in range(10)]
        await until(lambda: pool.status().waiting == 10)
        await pool.aclose()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Closed] * 10
        with pytest.raises(Closed):
            await pool.get_base_vm()
        with pytest.raises(Closed):
            await pool.wait_full()
        assert base.alive() == taken
        assert pool.status().closed
        base.gate.set()


@pytest.mark.parametrize("when", range(6))
async def test_closing_at_any_moment_of_a_take_leaves_one_owner_or_none(when) -> None:
    base = StandInFactory()
    async with opened(base, 1) as pool:
        taking = asyncio.create_task(pool.get_base_vm())
        for _ in range(when):
            await asyncio.sleep(0)
        await pool.aclose()
        (outcome,) = await asyncio.gather(taking, return_exceptions=True)
        assert base.alive() == ([] if isinstance(outcome, Closed) else [outcome])


async def test_a_close_that_is_cancelled_ends_the_machines_all_the_same() -> None:
    base = StandInFactory()
    pool = await CacheFactory.open(base, 3)
    await pool.wait_full(timeout_s=LIMIT_S)
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    await until(lambda: base.alive() == [])
    await pool.aclose()


@pytest.mark.parametrize("when", range(8))
@pytest.mark.parametrize("ready", [True, False])
async def test_a_take_cancelled_at_any_moment_loses_no_machine(when, ready) -> None:
    base = StandInFactory()
    async with opened(base, 1, full=ready) as pool:
        if not ready:
            base.gate.clear()
        taking = asyncio.create_task(pool.get_base_vm())
        await asyncio.sleep(0)
        base.gate.set()
        for _ in range(when):
            await asyncio.sleep(0)
        taking.cancel()
        (outcome,) = await asyncio.gather(taking, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            await pool.wait_full(timeout_s=LIMIT_S)
            assert len(base.alive()) == pool.status().ready
        else:
            assert outcome.state == ("parked" if ready else "up")
        assert not pool._line.leaving


async def test_many_takers_cancelled_at_random_lose_and_double_nothing() -> None:
    base, chance = StandInFactory(), random.Random(4)
    async with opened(base, 4) as pool:
        given: list[object] = []

        async def ask() -> None:
            given.append(await pool.get_base_vm(timeout_s=chance.choice((0.0, 0.001, 0.01, LIMIT_S))))

        for _ in range(30):
            asking = [asyncio.create_task(ask()) for _ in range(10)]
            for task in asking:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        await pool.wait_full(timeout_s=LIMIT_S)
        assert len(given) == len(set(map(id, given))) == pool.status().given
        assert not pool._line.leaving
        await until(lambda: not pool._starter.count)
        assert len(base.alive()) == len(given) + pool.status().ready


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2"])
async def test_a_size_that_is_no_number_of_machines_is_refused(size) -> None:
    with pytest.raises(ConfigError, match="is not a number of machines") as caught:
        await CacheFactory.open(StandInFactory(), size)
    assert caught.value.hint == "give 1 or more"


@pytest.mark.parametrize(
    ("shares", "each", "most"), [(True, "64 MiB", 15), (False, "320 MiB", 3)], ids=["forks", "booted"]
)
def test_more_than_the_host_has_memory_for_is_refused_with_the_arithmetic(monkeypatch, shares, each, most) -> None:
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 1000 * MIB)
    kind = StandInFactory(shares_memory=shares).kind
    check_size(most, kind)
    with pytest.raises(ConfigError) as caught:
        check_size(most + 1, kind)
    assert f"{most + 1} machines of {each} each need" in caught.value.message
    assert "the host has 1000 MiB" in caught.value.message
    assert caught.value.hint == f"give at most {most}"


async def test_a_pool_follows_what_is_taken_between_its_least_and_its_most(monkeypatch) -> None:
    base, clock = StandInFactory(), SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(cache_module, "Demand", partial(Demand, now=lambda: clock.now_s))
    async with opened(base, 4, least=1, check_interval_s=0.01) as pool:
        assert (pool.status().size, pool.status().ready) == (1, 1)
        taken = [await pool.get_base_vm(timeout_s=LIMIT_S) for _ in range(3)]
        assert (pool.status().size, pool.status().least, pool.status().most) == (4, 1, 4)
        await pool.wait_full(timeout_s=LIMIT_S)
        assert pool.status().ready == 4
        clock.now_s += 1000
        await until(lambda: pool.status().ready == 1)
        assert (pool.status().size, pool.status().dropped) == (1, {"surplus": 3})
        for vm in taken:
            await vm.aclose()


async def test_a_pool_of_none_makes_what_is_asked_for() -> None:
    base = StandInFactory()
    async with opened(base, 2, least=0) as pool:
        assert (pool.status().size, len(base.made)) == (0, 0)
        vm = await pool.get_base_vm(timeout_s=LIMIT_S)
        await pool.wait_full(timeout_s=LIMIT_S)
        assert pool.status().ready == 2
        await vm.aclose()
