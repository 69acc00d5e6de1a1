"""The slim emulator under KVM: taken by itself for a microvm, and each of the two opens what the other froze."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError
from vmfork.machine.emulator import SLIM

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

FULL = "qemu-system-x86_64"


@pytest.fixture(scope="module")
def made(working_kvm):
    """Templates of the machine microvm by the name of the emulator that froze them, as far as a test has asked."""
    need("slim-qemu")
    templates: dict[str, Template] = {}
    yield templates
    for template in templates.values():
        asyncio.run(template.remove())


def freeze(made: dict[str, Template], emulator: str) -> Template:
    """The template that this emulator froze. The slim one is taken where nothing is said."""
    if emulator not in made:
        config = VMConfig(machine="microvm", qemu="" if emulator == SLIM else emulator)
        made[emulator] = asyncio.run(Template.build(f"micro-{len(emulator)}", config))
    assert made[emulator].hardware.accel == "kvm"
    assert Path(made[emulator].manifest.qemu_path).name == emulator
    return made[emulator]


@pytest.fixture
def frozen(request, made) -> Template:
    return freeze(made, request.param)


def emulator_of(vm: VM) -> str:
    return Path(f"/proc/{vm.pid}/exe").resolve().name


def seccomp_of(vm: VM) -> str:
    lines = Path(f"/proc/{vm.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Seccomp:"))


_OPENED = ["", FULL, pytest.param(SLIM, marks=pytest.mark.slow)]


@pytest.mark.parametrize("frozen", [SLIM, pytest.param(FULL, marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("opened_by", _OPENED)
async def test_either_opens_what_the_other_froze(frozen, opened_by) -> None:
    template = await Template.open(frozen.name, config=VMConfig(qemu=opened_by))
    async with await template.fork() as vm, await template.fork() as other:
        assert emulator_of(vm) == (opened_by or Path(frozen.manifest.qemu_path).name)
        # The full one confines itself, the slim one is confined by its keeper.
        assert seccomp_of(vm) == "2"
        draws = [(await each.exec(["head", "-c", "32", "/dev/urandom"])).stdout_bytes for each in (vm, other)]
        assert draws[0] != draws[1]
        assert await vm.measure_clock_skew() < 0.5
        clock = await vm.read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        assert clock == b"kvm-clock\n"
        await vm.pause()
        await vm.resume()
        assert (await vm.exec(["true"])).ok


@pytest.mark.slow
def test_what_either_froze_has_the_same_traits(made) -> None:
    assert freeze(made, SLIM).manifest.traits == freeze(made, FULL).manifest.traits


async def test_a_machine_that_it_cannot_start_is_started_by_the_full_one(working_kvm) -> None:
    async with await VM.boot(VMConfig()) as vm:
        assert (vm.hardware.machine != "microvm", emulator_of(vm)) == (True, FULL)
    with pytest.raises(ConfigError, match="has no"):
        await VM.boot(VMConfig(qemu=SLIM, machine="q35"))
