"""The machine `microvm`: all that a machine is for, without PCI, vmgenid and memory that comes later."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.timing import least_skew_s
from vmfork.aio import VM, Template, VMHandle
from vmfork.config import VMConfig, find_places
from vmfork.errors import ConfigError, MachineEnded, StoreBusy
from vmfork.store import TemplateStore

pytestmark = pytest.mark.vm

FORKS = 8
LIMIT_S = 60
# What a guest may gain or lose against the host in a second. The rate it is told is right to a millionth; the rest is
# how long it takes to ask.
DRIFT_LIMIT = 0.002


@pytest.fixture(scope="module")
def micro(instance):
    """A template whose forks the agent reseeds. That without it they draw the same is seen in `test_fork_safety.py`."""
    config = VMConfig(machine="microvm", max_cpus=2)
    template = asyncio.run(Template.build("microvm-agent", config, warm_up=["echo warm > /root/marker"]))
    yield template
    asyncio.run(template.remove())


@pytest.fixture(params=["booted", "forked"])
async def any_microvm(request, micro):
    vm = await (VM.boot(VMConfig(machine="microvm")) if request.param == "booted" else micro.fork())
    async with vm:
        yield vm


async def test_its_guest_has_no_pci_and_a_clock_that_it_trusts(any_microvm) -> None:
    assert any_microvm.hardware.machine == "microvm"
    seen = await any_microvm.shell(
        "ls -d /sys/bus/pci/devices/*; ls -d /sys/bus/acpi/devices/LNRO0005:00;"
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg | grep -i unstable"
    )
    clock = "tsc" if any_microvm.accel == "tcg" else "kvm-clock"
    found = [line for line in seen.stdout.split() if not line.startswith("tsc-")]
    assert found[0] == "/sys/bus/acpi/devices/LNRO0005:00"
    assert found[1:] in ([clock], [])  # the kernel trusts it 1 s after it has found it


async def test_its_clock_goes_as_fast_as_the_hosts(any_microvm) -> None:
    async def read_ahead_s() -> tuple[float, float]:
        """How far the guest's clock is ahead of the host's: the most and the least that it can be, of five readings."""
        most, least = float("inf"), float("-inf")
        for _ in range(5):
            before = time.monotonic()
            uptime = float((await any_microvm.exec(["cat", "/proc/uptime"], check=True)).stdout.split()[0])
            most, least = min(most, uptime + 0.01 - before), max(least, uptime - time.monotonic())  # it has hundredths
        return most, least

    (most_first, least_first), begun = await read_ahead_s(), time.monotonic()
    await asyncio.sleep(5)
    most_last, least_last = await read_ahead_s()
    # However busy the host is, the clock was read between two looks at the host's.
    allowed = DRIFT_LIMIT * (time.monotonic() - begun)
    assert least_last - most_first <= allowed
    assert most_last - least_first >= -allowed
    assert await any_microvm.measure_clock_skew() < 0.1


async def test_forks_share_nothing_that_they_must_not(micro) -> None:
    assert (micro.manifest.traits["reseed"], micro.manifest.vmgenid) == ("agent", False)
    vms = await micro.fork_many(FORKS)
    try:
        for command in ("head -c 64 /dev/urandom | od -An -tx1", "cat /etc/machine-id", "hostname"):
            said = await asyncio.gather(*(vm.shell(command, check=True) for vm in vms))
            assert len({result.stdout for result in said}) == FORKS, command
        assert [(await vm.read_file("/root/marker")) for vm in vms] == [b"warm\n"] * FORKS
    finally:
        await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_an_audit_tells_that_the_agent_is_alone(micro) -> None:
    report = await micro.audit(2)
    (row,) = [row for row in report.rows if row.name == "reseed"]
    assert report.safe, report
    assert row.detail == "the agent's reseed; the machine microvm has no vmgenid"


@pytest.mark.kvm
@pytest.mark.qemu
async def test_it_is_paused_and_changes_hands(any_microvm) -> None:
    await any_microvm.pause()
    await asyncio.sleep(0.2)
    await any_microvm.resume()
    assert await least_skew_s(any_microvm, enough_s=0.1) <= 0.1
    handle = await any_microvm.detach(ttl_s=LIMIT_S)
    async with await VM.attach(VMHandle.from_json(handle.to_json())) as vm:
        assert vm.hardware == handle.hardware
        assert (await vm.exec(["hostname"], check=True)).stdout.strip() == vm.hostname


@pytest.mark.kvm
@pytest.mark.qemu
async def test_it_is_given_a_cpu_but_no_memory(micro) -> None:
    async with await micro.fork(cpus=2) as vm:
        assert (await vm.exec(["nproc"], check=True)).stdout.strip() == "2"
    with pytest.raises(ConfigError, match="cannot grow") as refused:
        await micro.fork(memory_mib=512)
    assert "q35" in refused.value.hint


@pytest.mark.kvm
@pytest.mark.qemu
@pytest.mark.parametrize(("key", "said"), [("c", "sysrq triggered crash"), ("o", "Power Off")])
async def test_a_guest_that_panics_or_powers_off_ends_its_machine(micro, key, said) -> None:
    async with await micro.fork() as vm:
        with pytest.raises(MachineEnded) as ended:
            await vm.shell(f"echo {key} > /proc/sysrq-trigger; sleep 60", timeout_s=30)
    assert ended.value.exit_code == 0
    assert said in ended.value.console_tail


async def test_a_request_for_the_other_machine_is_no_match(micro) -> None:
    for machine in ("auto", "microvm"):
        assert (await Template.ensure(micro.name, VMConfig(machine=machine))).generation == micro.generation
    # It would be built anew; that it would is all that is tried here.
    with pytest.raises(StoreBusy, match=micro.name):
        async with await TemplateStore(find_places().templates).stage(micro.name, memory_bytes=1 << 20, replace=True):
            await Template.ensure(micro.name, VMConfig(machine="q35"), wait_s=0)
