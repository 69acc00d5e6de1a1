"""The arithmetic of admission: every promise can be kept, the quick look lets in nobody whom the long one refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.admission.charge import DESCRIPTORS, EMULATOR_MIB, Charge
from vmfork.admission.rule import (
    Promised,
    Readings,
    count_fitting,
    count_promised,
    find_shortage,
    reserved_mib,
    show_arithmetic,
)
from vmfork.config import Limits

ROOMY = Readings(available_mib=100_000, total_mib=120_000)
FORK = Charge.of_fork(memory_mib=256, emulator_mib=392, cpus=1, overcommit=4)

memories = st.integers(64, 8192)
overcommits = st.floats(1, 16)
charges = st.builds(
    lambda memory_mib, emulator_mib, overcommit, booted: (
        Charge.of_boot(
            memory_mib=memory_mib, emulator_mib=emulator_mib, cpus=1, overcommit=overcommit, has_ram_file=False
        )
        if booted
        else Charge.of_fork(memory_mib=memory_mib, emulator_mib=emulator_mib, cpus=1, overcommit=overcommit)
    ),
    memories,
    st.integers(64, 1024),
    overcommits,
    st.booleans(),
)
limits_of_any_kind = st.builds(
    Limits, overcommit=overcommits, reserve_mib=st.none() | st.integers(0, 4096), max_pressure=st.just(10.0)
)
readings_of_any_host = st.builds(
    lambda available, more, descriptors, tasks: Readings(
        available_mib=available, total_mib=available + more, descriptors_left=descriptors, tasks_left=tasks
    ),
    st.integers(0, 65_536),
    st.integers(0, 65_536),
    st.none() | st.integers(0, 10_000),
    st.none() | st.integers(0, 10_000),
)
running = st.lists(st.tuples(charges, st.integers(0, 9000)), max_size=20)


def promise(charge, machines, readings, limits) -> Promised:
    uses = [used for _, used in machines]
    return count_promised(charge, [each for each, _ in machines], lambda: uses, readings=readings, limits=limits)


def test_a_fork_is_counted_with_a_part_of_its_memory_and_a_boot_with_all() -> None:
    assert (FORK.share_mib, FORK.most_mib) == (64 + 98, 256 + 392)
    boot = Charge.of_boot(memory_mib=256, emulator_mib=392, cpus=1, overcommit=4, has_ram_file=False)
    assert (boot.share_mib, boot.most_mib) == (256 + 98, 256 + 392)


def test_without_overcommit_a_machine_is_counted_with_all_that_it_and_its_emulator_can_ever_have() -> None:
    fork = Charge.of_fork(memory_mib=256, emulator_mib=392, cpus=1, overcommit=1)
    boot = Charge.of_boot(memory_mib=256, emulator_mib=392, cpus=1, overcommit=1, has_ram_file=False)
    assert fork.share_mib == fork.most_mib == boot.share_mib == boot.most_mib == 256 + 392


@pytest.mark.parametrize(("emulator_mib", "trusted_mib"), [(392, 98), (136, EMULATOR_MIB), (80, 80)])
def test_an_emulator_is_trusted_with_a_part_and_with_no_less_than_was_measured(emulator_mib, trusted_mib) -> None:
    fork = Charge.of_fork(memory_mib=256, emulator_mib=emulator_mib, cpus=1, overcommit=4)
    assert fork.share_mib == 64 + trusted_mib


def test_what_is_used_is_owed_no_more_and_who_passes_the_share_is_owed_all() -> None:
    assert FORK.owed_mib(0) == FORK.share_mib
    assert FORK.owed_mib(100) == FORK.share_mib - 100
    assert FORK.owed_mib(FORK.share_mib) == 0
    assert FORK.owed_mib(FORK.share_mib + 1) == FORK.most_mib - FORK.share_mib - 1
    assert FORK.owed_mib(FORK.most_mib + 50) == 0


def test_growth_takes_memory_and_nothing_else() -> None:
    short = replace(ROOMY, descriptors_left=0, tasks_left=0)
    assert find_shortage(Charge.of_growth(512), Promised(), readings=short, limits=Limits()) is None
    grown = FORK.grown(512)
    assert (grown.share_mib, grown.most_mib, grown.tasks) == (FORK.share_mib + 512, FORK.most_mib + 512, FORK.tasks)
    assert grown.grown(-512) == FORK


def test_by_default_a_twentieth_stays_the_hosts() -> None:
    assert reserved_mib(ROOMY, Limits()) == 6000
    assert reserved_mib(ROOMY, Limits(reserve_mib=0)) == 0


def test_a_refusal_shows_the_arithmetic() -> None:
    readings = Readings(available_mib=1000, total_mib=2000)
    limits = Limits(reserve_mib=300)
    promised = Promised(count=5, owed_mib=600)
    short = find_shortage(FORK, promised, readings=readings, limits=limits)
    assert short is not None
    assert (short.resource, short.reason) == ("memory", "162 MiB of memory are needed, and 100 MiB can be promised")
    shown = [line.split()[:4] for line in short.lines]
    assert ["available", "1000", "MiB"] in shown
    assert ["-", "reserved", "300", "MiB"] in shown
    assert ["-", "promised", "600", "MiB"] in shown
    assert ["=", "to", "give", "100"] in shown
    assert shown[-1] == ["needed", "162", "MiB", "of"]
    assert find_shortage(FORK, Promised(count=5, owed_mib=538), readings=readings, limits=limits) is None


@pytest.mark.parametrize(
    ("readings", "resource", "told"),
    [
        (replace(ROOMY, descriptors_left=DESCRIPTORS - 1), "file descriptors", f"{DESCRIPTORS - 1} are left"),
        (replace(ROOMY, tasks_left=1), "processes and threads", "1 are left"),
        (replace(ROOMY, pressure_percent=10.1), "memory pressure", "10.1 % of the time"),
    ],
)
def test_what_else_a_host_can_be_short_of_is_named(readings, resource, told) -> None:
    short = find_shortage(FORK, Promised(), readings=readings, limits=Limits())
    assert short is not None
    assert short.resource == resource
    assert told in short.reason
    assert count_fitting(FORK, Promised(), readings=readings, limits=Limits()) == 0


def test_pressure_that_is_allowed_or_not_told_refuses_nobody() -> None:
    for readings, limits in (
        (replace(ROOMY, pressure_percent=10.0), Limits()),
        (replace(ROOMY, pressure_percent=99.0), Limits(max_pressure=0)),
        (ROOMY, Limits()),
    ):
        assert find_shortage(FORK, Promised(), readings=readings, limits=limits) is None


def test_what_machines_use_is_not_read_where_all_of_them_can_have_the_most() -> None:
    def read():
        raise AssertionError("nobody need look")

    assert count_promised(FORK, [FORK] * 10, read, readings=ROOMY, limits=Limits()).owed_mib == 10 * FORK.most_mib


@given(charges, running, readings_of_any_host, limits_of_any_kind)
def test_the_quick_look_lets_in_nobody_whom_the_long_one_refuses(charge, machines, readings, limits) -> None:
    quick = promise(charge, machines, readings, limits)
    owed = sum(each.owed_mib(used) for each, used in machines)
    assert quick.owed_mib >= owed
    if find_shortage(charge, quick, readings=readings, limits=limits) is None:
        long = Promised(count=len(machines), owed_mib=owed)
        assert find_shortage(charge, long, readings=readings, limits=limits) is None


@given(running, readings_of_any_host, limits_of_any_kind)
def test_without_overcommit_no_machine_can_use_up_the_hosts_own(machines, readings, limits) -> None:
    """Everybody who was let in takes all that it can: what stays the host's is there all the same."""
    limits = replace(limits, overcommit=1)
    let_in: list[Charge] = []
    for machine, _ in machines:
        whole = replace(machine, share_mib=machine.most_mib)
        asked = promise(whole, [(each, 0) for each in let_in], readings, limits)
        if find_shortage(whole, asked, readings=readings, limits=limits) is None:
            let_in.append(whole)
    taken = sum(each.most_mib for each in let_in)
    assert not let_in or readings.available_mib - taken >= reserved_mib(readings, limits)


@given(charges, running, readings_of_any_host, limits_of_any_kind)
def test_as_many_fit_as_can_be_let_in_one_after_the_other(charge, machines, readings, limits) -> None:
    uses = [used for _, used in machines]
    owed = sum(each.owed_mib(used) for each, used in machines)
    promised = Promised(count=len(uses), owed_mib=owed)
    fitting = count_fitting(charge, promised, readings=readings, limits=limits)
    if fitting > 200:
        return
    let_in = 0
    while find_shortage(charge, promised, readings=readings, limits=limits) is None:
        let_in += 1
        promised = Promised(count=promised.count + 1, owed_mib=promised.owed_mib + charge.share_mib)
        readings = replace(
            readings,
            descriptors_left=readings.descriptors_left and readings.descriptors_left - DESCRIPTORS,
            tasks_left=readings.tasks_left and readings.tasks_left - charge.tasks,
        )
    assert let_in == fitting


@given(charges, running, readings_of_any_host, limits_of_any_kind, st.integers(1, 10_000))
def test_more_memory_never_keeps_anybody_out(charge, machines, readings, limits, more_mib) -> None:
    promised = promise(charge, machines, readings, limits)
    richer = replace(readings, available_mib=readings.available_mib + more_mib)
    if find_shortage(charge, promised, readings=readings, limits=limits) is None:
        assert find_shortage(charge, promise(charge, machines, richer, limits), readings=richer, limits=limits) is None


def test_the_arithmetic_can_be_shown_without_a_refusal() -> None:
    lines = show_arithmetic(Promised(), readings=ROOMY, limits=Limits())
    assert lines[-1].split()[-2:] == ["94000", "MiB"]
    assert "no machine runs" in lines[2]
