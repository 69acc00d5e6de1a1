"""Which base serves a request, and what is counted when none does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.factory.stand_in import TRAITS, StandInFactory, sized
from vmfork.config import VMConfig
from vmfork.factory.choice import Choice, Match, Miss, Oversize, Want, choose, judge_size
from vmfork.machine.growth import Lack

IMAGE = SimpleNamespace(
    kernel_sha256=TRAITS["image.kernel"], initramfs_sha256=TRAITS["image.initramfs"], disk_sha256=""
)


def want(image=IMAGE, **config) -> Want:
    return Want(VMConfig(**config), image)


def base(cpus: int = 1, memory_mib: int = 256, *, traits=TRAITS, **room) -> StandInFactory:
    return StandInFactory("base", sized(cpus, memory_mib, **room), dict(traits))


@pytest.mark.parametrize(
    ("have", "cpus", "memory_mib", "found"),
    [
        (sized(1, 256), 1, 256, Match.EXACT),
        (sized(1, 256, max_cpus=2), 2, 256, Match.GROWN),
        (sized(1, 256, max_memory_mib=512), 1, 300, Match.GROWN),
        (sized(2, 512), 1, 256, Match.LARGER),
        (sized(2, 256, max_memory_mib=512), 1, 512, Match.LARGER),
        (sized(1, 256), 2, 256, Lack.CPUS),
        (sized(1, 256), 1, 257, Lack.MEMORY),
        (sized(1, 256, max_memory_mib=384), 1, 385, Lack.MEMORY),
        (sized(1, 512), 2, 256, Lack.CPUS),
    ],
)
def test_a_size_is_met_grown_to_exceeded_or_lacking(have, cpus, memory_mib, found) -> None:
    assert judge_size(have, VMConfig(cpus=cpus, memory_mib=memory_mib)) is found


@pytest.mark.parametrize(
    ("have", "wanted", "found"),
    [
        (sized(1, 256), {"max_cpus": 4}, Lack.CPU_ROOM),
        (sized(1, 256, max_cpus=2), {"max_cpus": 4}, Lack.CPU_ROOM),
        (sized(1, 256, max_cpus=8), {"max_cpus": 4}, Match.EXACT),
        (sized(2, 256), {"max_cpus": 2}, Match.LARGER),
        (sized(1, 256), {"max_cpus": 1}, Match.EXACT),
        (sized(1, 256), {"max_memory_mib": 512}, Lack.MEMORY_ROOM),
        (sized(1, 256, max_memory_mib=512), {"max_memory_mib": 512}, Match.EXACT),
        # Grown in blocks to 384 first: of 684 in all it comes to 768.
        (sized(1, 256, max_memory_mib=768), {"memory_mib": 300, "max_memory_mib": 684}, Match.GROWN),
        (sized(1, 256, max_memory_mib=640), {"memory_mib": 300, "max_memory_mib": 684}, Lack.MEMORY_ROOM),
        (sized(1, 256, max_cpus=4), {"cpus": 2, "max_cpus": 8}, Lack.CPU_ROOM),
    ],
)
def test_the_room_to_grow_is_compared(have, wanted, found) -> None:
    """A template without room counted as `exact` for a request that asked for room."""
    assert judge_size(have, VMConfig(**wanted)) is found


@pytest.mark.parametrize(
    ("config", "trait"),
    [
        ({"accel": "kvm"}, "accel"),
        ({"cpu_model": "qemu64"}, "cpu_model"),
        ({"kernel_args": "quiet"}, "kernel_args"),
        ({"reseed": "none"}, "reseed"),
        ({"aslr": "on"}, "aslr"),
    ],
)
def test_what_a_request_names_must_be_equal(config, trait) -> None:
    assert choose([base()], want(**config), oversize=True) == Miss(trait)


def test_what_a_request_leaves_to_the_host_is_the_bases() -> None:
    under_kvm = base(traits={**TRAITS, "accel": "kvm", "cpu_model": "host,migratable=on", "aslr": "on"})
    under_kvm.hardware = sized(1, 256, accel="kvm")
    assert choose([under_kvm], want(), oversize=False) == Choice(under_kvm, Match.EXACT)


def test_an_image_is_compared_by_content_and_by_name_where_there_is_none_here() -> None:
    one, rebuilt = base(), SimpleNamespace(kernel_sha256="other", initramfs_sha256="bb", disk_sha256="")
    for asked, found in (
        (Want(VMConfig(), rebuilt), Miss("image.kernel")),
        (Want(VMConfig(), None), Choice(one, Match.EXACT)),
        (Want(VMConfig(image="other"), None), Miss("image")),
    ):
        assert choose([one], asked, oversize=False) == found


def test_the_nearest_miss_is_told() -> None:
    small, large, other = base(), base(4, 1024), base(traits={**TRAITS, "reseed": "none"})
    assert choose([other, small, large], want(cpus=2), oversize=False) == Oversize()
    assert choose([other, small], want(cpus=2, memory_mib=512), oversize=False) == Miss("cpus")
    assert choose([other, small], want(max_cpus=2), oversize=False) == Miss("max_cpus")
    assert choose([other], want(), oversize=False) == Miss("reseed")
    assert choose([], want(), oversize=False) == Miss("no base")
