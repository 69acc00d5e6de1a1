"""What a machine's QEMU is kept by, seen from the host; and what is said where the host cannot keep it so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.vm.cli_runner import vmfork
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, HostError
from vmfork.host import jail
from vmfork.host.delegation import find_delegation
from vmfork.host.process import ProcessIdentity, wait_ended
from vmfork.hypervisor.qemu import surroundings
from vmfork.machine import trial
from vmfork.machine.folder import find_record, sweep_ended

pytestmark = [pytest.mark.vm, pytest.mark.qemu]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def descriptors_of(pid: int) -> dict[str, int]:
    """Where each descriptor leads, and its access mode."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        lines = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines()
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        found[os.readlink(fd)] = flags & os.O_ACCMODE
    return found


async def test_a_machine_says_how_it_is_kept_and_is_kept_so(any_vm, instance) -> None:
    isolation = any_vm.isolation
    record = find_record(instance.vms / any_vm.id)
    assert record is not None
    assert record.isolation == isolation
    status = status_of(any_vm.pid)
    need("isolation", found=isolation.level != "none")
    assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"], status["Seccomp"]) == (
        "0" * 16,
        "0" * 16,
        "1",
        "2",
    )
    assert not status["Groups"] or os.geteuid() != 0
    variables = Path(f"/proc/{any_vm.pid}/environ").read_bytes().split(b"\0")
    assert {variable.partition(b"=")[0] for variable in variables if variable} <= {
        b"LD_PRELOAD",
        b"VMFORK_KEEPER_FD",
        b"VMFORK_KVM_FD",
        b"VMFORK_SMALL_PAGES",
    }
    if "user" in isolation.parts:
        assert int(status["Uid"].split()[0]) >= 2_100_000_000
    if "namespaces" in isolation.parts:
        for kind in ("mnt", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{any_vm.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        root = Path(f"/proc/{any_vm.pid}/root")
        assert not (root / "proc").exists()
        assert sorted(path.name for path in (root / "etc").iterdir()) == ["ld.so.cache"]


LIMITS = ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.weight", "cpu.shares", "cpu.max", "cpu.cfs_quota_us")


def read_limits(folder: str) -> dict[str, str]:
    return {name: Path(folder, name).read_text().strip() for name in LIMITS if Path(folder, name).exists()}


def find_groups(vms: Path, vm_id: str) -> list[str]:
    return json.loads((vms / vm_id / "groups.json").read_text())["folders"]


async def wait_in_groups(vm: VM, count: int) -> None:
    """The keeper has put the machine into all of its groups; on a busy host it may come to that after the fork."""
    async with asyncio.timeout(30):
        while Path(f"/proc/{vm.pid}/cgroup").read_text().count(f"/vmfork-{vm.id}\n") < count:
            await asyncio.sleep(0.01)


def need_groups() -> None:
    need("control-groups", found=not find_delegation().missing)


async def test_what_a_machine_may_use_is_limited_and_its_groups_go_with_it(template_name, instance) -> None:
    need_groups()
    template = await Template.open(template_name, config=VMConfig(cpu_weight=50))
    async with await template.fork() as vm:
        assert {"memory", "cpu", "processes"} <= {*vm.isolation.parts}
        folders = find_groups(instance.vms, vm.id)
        await wait_in_groups(vm, len(folders))
        values = {name: value for folder in folders for name, value in read_limits(folder).items()}
        assert 256 < int(values.get("memory.max") or values["memory.limit_in_bytes"]) >> 20 < 256 + 1024
        assert values["pids.max"] == "129"
        assert (values.get("cpu.weight"), values.get("cpu.shares")) in {("50", None), (None, "512")}
        # Of version 1, none where a group above has less already.
        assert {values.get("cpu.max"), values.get("cpu.cfs_quota_us")} & {"200000 100000", "200000", "-1"}
        assert (await vm.exec(["python3", "-c", "print(len(bytearray(40 << 20)))"])).exit_code == 0
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.parametrize("killed", ["qemu", "owner"])
async def test_whoever_is_killed_its_groups_are_removed(template_name, instance, killed) -> None:
    need_groups()
    program = "import vmfork, time; vm = vmfork.Template.open({!r}).fork(); print(vm.id, vm.pid, flush=True); {}"
    command = [sys.executable, "-c", program.format(template_name, "time.sleep(1000)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            vm_id, pid = owner.stdout.readline().split()
            folders, machine = find_groups(instance.vms, vm_id), ProcessIdentity.of(int(pid))
            assert machine is not None
            os.kill(int(pid) if killed == "qemu" else owner.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                await wait_ended(machine)
        finally:
            owner.kill()
    await sweep_ended(instance.vms / vm_id)
    assert folders
    assert not any(Path(folder).exists() for folder in folders)


async def test_a_fork_has_its_template_open_for_reading_alone(fork) -> None:
    need("isolation", found=fork.isolation.level != "none")
    opened = descriptors_of(fork.pid)
    # That of the state is closed once it is loaded.
    ours = {Path(path).name: mode for path, mode in opened.items() if path.endswith(("/memory", "/state"))}
    assert ours["memory"] == os.O_RDONLY
    assert set(ours.values()) == {os.O_RDONLY}
    maps = [line.split() for line in Path(f"/proc/{fork.pid}/maps").read_text().splitlines() if "/memory" in line]
    assert maps
    assert {fields[1][3] for fields in maps} == {"p"}


async def test_the_keeper_has_nothing_of_our_environment_either(template, monkeypatch) -> None:
    monkeypatch.setenv("VMFORK_TEST_KEY", "secret")
    async with await template.fork() as vm:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert str(vm.pid) in children
        for pid in children:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith(("qemu", "vmfork-keeper")):
                assert b"VMFORK_TEST_KEY" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.needs("root")
async def test_each_machine_has_a_user_of_its_own_and_gives_it_back(template_name) -> None:
    three = "2100064000-2100064002"  # no other test's
    template = await Template.open(template_name, config=VMConfig(user_ids=three))
    for _ in range(2):
        vms = await template.fork_many(3)
        try:
            need("machine-users", found="user" in vms[0].isolation.parts)
            assert {int(status_of(vm.pid)["Uid"].split()[0]) for vm in vms} == {2100064000, 2100064001, 2100064002}
        finally:
            await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_what_is_known_goes_with_the_machine(template) -> None:
    vm = await template.fork()
    before = vm.isolation
    handle = await vm.detach()
    assert handle.isolation == before
    async with await VM.attach(handle) as taken:
        assert taken.isolation == before
        assert (await taken.exec(["true"])).exit_code == 0


async def test_it_can_be_switched_off_and_says_so(template_name) -> None:
    template = await Template.open(template_name, config=VMConfig(isolation="off"))
    async with await template.fork() as vm:
        assert (vm.isolation.level, vm.isolation.parts) == ("none", ())
        assert vm.isolation.missing == (
            *("filter: switched off", "namespaces: needs filter", "user: needs filter"),
            *("memory: switched off", "cpu: switched off", "processes: switched off"),
        )
        assert status_of(vm.pid)["Uid"].split()[0] == str(os.geteuid())


async def test_less_than_is_required_starts_nothing_and_says_what_is_missing(template_name, instance) -> None:
    template = await Template.open(template_name, config=VMConfig(isolation="off", require_isolation="basic"))
    with pytest.raises(HostError, match=r"isolation 'basic' is required, and this host gives 'none' .*switched off"):
        await template.fork()
    with pytest.raises(ConfigError, match="not known"):
        VMConfig(require_isolation="much")
    env = {"VMFORK_VM_ISOLATION": "off"}
    outcome = vmfork("run", "--json", "--require-isolation", "full", "-t", template_name, "--", "true", env=env)
    assert outcome.status == 125
    assert "isolation 'full' is required" in json.loads(outcome.out)["error"]["message"]


async def test_a_host_that_refuses_what_it_gave_before_is_named(template, monkeypatch) -> None:
    """What was tried is remembered. Where a host lets less be done since then, no machine starts that is less kept."""
    real = surroundings.make_jail

    def too_much(containment, **places):
        made = real(containment, **places)
        return jail.Jail(root=made.root or places["folder"], bound=("/no/such/library",), lease=made.lease)

    monkeypatch.setattr(surroundings, "make_jail", too_much)
    async with asyncio.timeout(30):
        with pytest.raises(HostError, match="this host refuses what keeps an emulator from it") as refused:
            await template.fork()
    assert "doctor" in refused.value.hint


async def test_doctor_tries_anew_and_tells_the_level(template, instance) -> None:
    async with await template.fork() as vm:
        level = vm.isolation.level
    (instance.runtime / trial.RECORD).write_text("{}")
    checks = {check["name"]: check for check in json.loads(vmfork("doctor", "--json").check().out)["checks"]}
    assert checks["isolation"]["found"].startswith(f"{level}: ")
    assert json.loads((instance.runtime / trial.RECORD).read_text())["key"]
