"""The main road: from the proof of KVM to machines that work. Short, for it runs in every test run."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.timing import least_skew_s
from tests.vm.cli_runner import vmfork
from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import TemplateStale
from vmfork.host import facts
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


# Where a kernel's code begins that is not moved (Linux, arch/x86/include/asm/page_64_types.h).
NO_KASLR = "ffffffff81000000"


@pytest.fixture
async def template(roomy) -> Template:
    return await Template.open(roomy)


@pytest.fixture
async def forks(template):
    vms = await template.fork_many(2)
    yield vms
    await asyncio.gather(*(vm.aclose() for vm in vms))


def test_doctor_says_that_kvm_is_used(working_kvm) -> None:
    checks = json.loads(vmfork("doctor", "--json").check().out)["checks"]
    (kvm,) = [check for check in checks if check["name"] == "kvm"]
    assert (kvm["level"], kvm["found"]) == ("ok", "proven: it runs the guest, and is used")


async def test_a_template_built_without_a_word_about_it_uses_kvm(template) -> None:
    assert template.hardware.accel == "kvm"


async def find_kernel(vm: VM) -> str:
    """Where its code begins."""
    return (await vm.shell("grep -m 1 ' _text$' /proc/kallsyms", check=True)).stdout.split()[0]


async def test_a_machine_that_demands_kvm_boots_in_the_least_memory(forks, instance) -> None:
    """The least memory was measured on another host, under TCG."""
    least = ImageStore(instance.images).open("default").min_memory_mib
    async with await VM.boot(VMConfig(accel="kvm", memory_mib=least)) as vm:
        assert vm.accel == "kvm"
        assert (await vm.exec(["true"], timeout_s=30)).ok
        # Nothing of the kernel's or the programs' address layout is switched off, as it is under TCG.
        command_line = await vm.read_file("/proc/cmdline")
        assert not re.search(rb"nokaslr|norandmaps", command_line)
        stacks = [(await vm.shell("grep stack /proc/self/maps", check=True)).stdout for _ in range(2)]
        assert stacks[0] != stacks[1]
        # A kernel lies at one of some 500 places after each boot, and in forks where it lay: all are not at one.
        one, other = [await find_kernel(each) for each in forks]
        assert one == other
        assert len({one, await find_kernel(vm), NO_KASLR}) > 1


async def test_on_another_cpu_the_template_is_refused_by_name(template, monkeypatch) -> None:
    monkeypatch.setattr(facts, "cpu_name", lambda: "Another CPU (6-1-1, flags 0)")
    with pytest.raises(TemplateStale) as opened:
        await Template.open(template.name)
    with pytest.raises(TemplateStale) as forked:
        await template.fork()
    for stale in (opened.value, forked.value):
        assert (stale.field, stale.want) == ("host_cpu", "Another CPU (6-1-1, flags 0)")


async def test_two_forks_run_under_kvm_and_share_nothing(forks) -> None:
    for vm in forks:
        assert vm.accel == "kvm"
        assert vm.adoption.skew_bound_s <= SKEW_LIMIT_S
        clock = await vm.read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        assert clock == b"kvm-clock\n"
        assert b"nonstop_tsc" not in await vm.read_file("/proc/cpuinfo")  # what the guest calls `invtsc`
    for command in (
        "head -c 32 /dev/urandom | od",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/boot_id",
        "hostname",
    ):
        one, other = [(await vm.shell(command, check=True)).stdout for vm in forks]
        assert one != other, command
    one, other = forks
    await one.write_file("/root/mine", "one")
    await other.write_file("/root/mine", "other")
    assert (await one.exec(["cat", "/root/mine"])).stdout == "one"
    result = await other.exec(["python3", "-c", "import sys; print(sum(map(int, sys.stdin)))"], input="1\n2\n")
    assert (result.stdout, result.exit_code) == ("3\n", 0)
    assert one.memory().guest_shared > 0


async def test_a_forwarded_port_leads_into_each_of_two_forks(forks) -> None:
    serve = ["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/etc"]
    for vm in forks:
        async with vm.start(serve), vm.forward(8000) as port:
            await vm.wait_for_port(8000, timeout_s=60)
            reader, writer = await asyncio.open_connection(port.host, port.host_port)
            writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 60)).endswith(f"vm-{vm.id}\n".encode())
            writer.close()


async def test_a_fork_grows_by_a_cpu_and_memory(template) -> None:
    async with await template.fork(cpus=2, memory_mib=512) as vm:
        told = await vm.shell("nproc; awk '/MemTotal/ {print $2}' /proc/meminfo", check=True, timeout_s=30)
        cpus, total_kib = map(int, told.stdout.split())
        assert cpus == 2
        assert total_kib // 1024 > 384


async def test_a_paused_fork_comes_back_with_the_clock_of_now(template) -> None:
    async with await template.fork() as vm:
        await vm.pause()
        await asyncio.sleep(2)  # so much the guest's clock is late, if nobody sees to it
        await vm.resume()
        assert await least_skew_s(vm, enough_s=SKEW_LIMIT_S) <= SKEW_LIMIT_S


def test_run_prints_what_the_program_printed(roomy) -> None:
    done = vmfork("run", "-t", roomy, "--", "sh", "-c", "echo out; exit 3")
    assert (done.status, done.out) == (3, "out\n")
