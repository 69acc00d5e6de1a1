"""What a layer is called: by all that the machine was made of, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vmfork.hypervisor.base import Hardware
from vmfork.template.layers import name_layers

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@dataclass(frozen=True)
class Planned:
    """What of a plan counts."""

    traits: dict[str, str] = field(default_factory=lambda: {"image.kernel": "aa", "accel": "tcg"})
    hardware: Hardware = HARDWARE
    reseed: bool = True


PINS = ("first", "second")


def test_there_is_one_of_the_boot_and_one_behind_each_step() -> None:
    names = name_layers(Planned(), PINS)
    assert len(set(names)) == len(names) == 3
    assert names == name_layers(Planned(), PINS)
    assert all(len(name) == 64 for name in names)


def test_another_image_emulator_or_size_is_another_machine_from_the_boot_on() -> None:
    plan = Planned()
    others = [
        replace(plan, traits={**plan.traits, "image.kernel": "bb"}),
        replace(plan, hardware=replace(plan.hardware, memory_mib=512)),
        replace(plan, hardware=replace(plan.hardware, cpus=2)),
        replace(plan, hardware=replace(plan.hardware, scratch_mib=256)),
        replace(plan, hardware=replace(plan.hardware, scratch_mib=512)),
        replace(plan, reseed=False),
    ]
    names = [name for each in (plan, *others) for name in name_layers(each, PINS)]
    assert len(set(names)) == len(names)


def test_a_step_that_changes_leaves_the_names_before_it() -> None:
    before, after = name_layers(Planned(), PINS), name_layers(Planned(), ("first", "changed"))
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False]
