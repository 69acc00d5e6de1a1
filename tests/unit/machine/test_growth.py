"""What size a machine can be given, by arithmetic alone."""

from __future__ import annotations

import pytest

from vmfork.errors import ConfigError
from vmfork.hypervisor.base import Hardware
from vmfork.machine.growth import Change, plan_change, plan_growth

PLAIN = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
ROOMY = Hardware(
    machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=2, memory_mib=1024, max_cpus=4, max_memory_mib=1280,
    added_mib=(256, 128, 384),
)  # fmt: skip


@pytest.mark.parametrize(
    ("cpus", "memory_mib", "change", "left_mib"),
    [
        (None, None, Change(2), 1024),
        (4, 1280, Change(4, added_mib=256), 1280),
        (1, 1025, Change(1, added_mib=128), 1152),
        (None, 640, Change(2, removed=1), 640),
        (None, 600, Change(2, removed=1), 640),
        (None, 512, Change(2, removed=2), 512),
        (3, 256, Change(3, removed=3), 256),
    ],
)
def test_a_size_is_reached_by_blocks_that_come_and_pieces_that_go(cpus, memory_mib, change, left_mib) -> None:
    found = plan_change(ROOMY, cpus=cpus, memory_mib=memory_mib)
    assert (found, found.memory_of(ROOMY)) == (change, left_mib)


@pytest.mark.parametrize(
    ("hardware", "size", "text", "hint"),
    [
        (ROOMY, {"cpus": 5}, "the machine has 2 and room for 2 more, 4 in all; 5 were asked for", "at most 4"),
        (ROOMY, {"cpus": 0}, "0 is out of range", "1 or more"),
        (ROOMY, {"memory_mib": 1281}, "room for 256 MiB more.*rounded up to blocks of 128 MiB", "at most 1280 MiB"),
        (ROOMY, {"memory_mib": 700}, "the last piece first", "give 640 MiB or 512 MiB or 256 MiB"),
        (ROOMY, {"memory_mib": 255}, "of which it was booted with 256 MiB", "give 640 MiB or"),
        (PLAIN, {"memory_mib": 128}, "of which it was booted with 256 MiB", "a smaller machine"),
        (PLAIN, {"memory_mib": 257}, "and cannot grow", "--max-memory 257"),
    ],
)
def test_what_a_machine_cannot_have_is_refused_with_the_arithmetic(hardware, size, text, hint) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        plan_change(hardware, **size)
    assert hint in caught.value.hint


@pytest.mark.parametrize("size", [{"cpus": 1}, {"memory_mib": 512}])
def test_a_fork_is_not_made_smaller_than_its_template(size) -> None:
    with pytest.raises(ConfigError, match=r"template 'py' has .*, not"):
        plan_growth(ROOMY, **size, whose="template 'py'")
