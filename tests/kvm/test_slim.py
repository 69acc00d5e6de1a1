"""The slim emulator under KVM: taken by itself for a microvm, and each of the two opens what the other froze."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.vm.cli_runner import vmfork
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError
from vmfork.machine.emulator import SLIM

pytestmark = [pytest.mark.vm, pytest.mark.kvm]
# Its two templates take a minute and more to build: `make test` leaves it to `make test-kvm`.
of_both = pytest.mark.slow

FULL = "qemu-system-x86_64"


@pytest.fixture(scope="module")
def micro(working_kvm):
    """Templates of the machine microvm by the name of the emulator that froze them."""
    need("slim-qemu")

    async def build() -> dict[str, Template]:
        chosen = {SLIM: VMConfig(machine="microvm"), FULL: VMConfig(machine="microvm", qemu=FULL)}
        return {name: await Template.build(f"micro-{len(name)}", config) for name, config in chosen.items()}

    templates = asyncio.run(build())
    yield templates
    for template in templates.values():
        asyncio.run(template.remove())


def emulator_of(vm: VM) -> str:
    return Path(f"/proc/{vm.pid}/exe").resolve().name


def seccomp_of(vm: VM) -> str:
    lines = Path(f"/proc/{vm.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Seccomp:"))


@of_both
async def test_each_froze_its_own_and_the_manifest_says_which(micro) -> None:
    for name, template in micro.items():
        assert template.hardware.accel == "kvm"
        assert Path(template.manifest.qemu_path).name == name
        shown = json.loads(vmfork("template", "show", template.name, "--json").check().raw)
        assert [Path(path).name for path in shown["opened_by"]] == [FULL, SLIM]
    one, other = (template.manifest.traits for template in micro.values())
    assert one == other


@of_both
@pytest.mark.parametrize("frozen_by", [SLIM, FULL])
@pytest.mark.parametrize("opened_by", ["", SLIM, FULL])
async def test_either_opens_what_the_other_froze(micro, frozen_by, opened_by) -> None:
    template = await Template.open(micro[frozen_by].name, config=VMConfig(qemu=opened_by))
    async with await template.fork() as vm, await template.fork() as other:
        assert emulator_of(vm) == (opened_by or frozen_by)
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


async def test_a_machine_that_it_cannot_start_is_started_by_the_full_one(working_kvm) -> None:
    async with await VM.boot(VMConfig()) as vm:
        assert (vm.hardware.machine != "microvm", emulator_of(vm)) == (True, FULL)
    with pytest.raises(ConfigError, match="has no"):
        await VM.boot(VMConfig(qemu=SLIM, machine="q35"))
