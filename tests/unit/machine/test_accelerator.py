"""KVM is proven by the plainest machine there is; a failure that says nothing of KVM is no verdict on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import GuestError, HostError, LaunchError, NoRoom
from vmfork.hypervisor.qemu import QemuBinary
from vmfork.image import Image
from vmfork.machine import accelerator
from vmfork.machine.accelerator import _explain_failure, decide_accel, prove_kvm
from vmfork.machine.verdict import Verdict

DUMP = "KVM internal error. Suberror: 1\nemulation failure\nEAX=00000000 EBX=00000000\nCode=05 83 fa 0f"
PANIC = "[    0.5] Kernel panic - not syncing: "
BINARY = QemuBinary(path=Path("/nowhere/qemu"), version="7.2.22", release=(7, 2, 22), stamp="1")
IMAGE = Image(
    name="default",
    recipe="0",
    bare=False,
    digest="0",
    kernel=Path("/nowhere/kernel"),
    initramfs=Path("/nowhere/initramfs"),
    kernel_release="6.12.118",
    kernel_sha256="0",
    initramfs_sha256="0",
    arch="x86_64",
    suite="trixie",
    requested=("bash",),
    packages={},
    unpacked_bytes=100 << 20,
    min_memory_mib=232,
    created_at="",
    kernel_bytes=0,
    initramfs_bytes=0,
)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with KVM. `host.ends` is how a boot ends there: with that error, or in a machine, which is none."""

    class Host(SimpleNamespace):
        async def prove(self, config: VMConfig, **options) -> Verdict:
            return await prove_kvm(config, image=IMAGE, binary=BINARY, instance=self.instance, **options)

        def kept(self) -> int:
            return len(list(tmp_path.glob("verdicts/*")))

    class Base:
        async def aclose(self) -> None:
            found.closed += 1

    async def boot_base(plan, *, instance, watch):
        found.plans.append(plan)
        if found.ends is not None:
            raise found.ends
        return Base()

    found = Host(instance=Instance(Places(home=tmp_path, runtime=tmp_path)), ends=None, plans=[], closed=0)
    monkeypatch.setattr(accelerator.kvm, "find_refusal", lambda: None)
    monkeypatch.setattr(accelerator, "boot_base", boot_base)
    return found


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (DUMP, "silence: KVM internal error. Suberror: 1"),
        (
            "\nqemu: warning: no such feature\nqemu: failed to set MSR 0x48\nqemu: Assertion failed",
            "silence: qemu: failed to set MSR 0x48",
        ),
        ("qemu: warning: no such feature\n", "silence"),
        ("", "silence"),
    ],
)
def test_the_first_complaint_is_told(log, told) -> None:
    assert _explain_failure(LaunchError("silence", log_tail=log)) == told


async def test_what_the_caller_asks_of_the_machine_is_not_in_the_proof_that_others_get(host) -> None:
    odd = VMConfig(
        cpus=2, max_cpus=4, memory_mib=512, max_memory_mib=1024, kernel_args="mem=64M", nic=True, disk_mib=64,
        reseed="agent", aslr="off", boot_timeout_s=1.0,
    )  # fmt: skip
    await host.prove(odd)
    assert await host.prove(VMConfig()) == Verdict(usable=True, reason="")
    assert (len(host.plans), host.closed) == (1, 1)  # one proof is for both
    await host.prove(VMConfig(), anew=True)
    proven, plain = host.plans
    assert (proven.hardware, proven.command_line, proven.traits) == (plain.hardware, plain.command_line, plain.traits)
    assert proven.boot_timeout_s == plain.boot_timeout_s > 600
    assert "mem=64M" not in proven.command_line


async def test_who_may_be_kept_from_the_host_and_how_much_of_it_there_is_holds_for_the_proof_too(host) -> None:
    config = VMConfig(require_isolation="basic", reserve_mib=100)
    await host.prove(config)
    (plan,) = host.plans
    assert (plan.policy, plan.limits) == (config.isolation_policy, config.limits)


@pytest.mark.parametrize("other", [VMConfig(machine="microvm"), VMConfig(cpu_model="EPYC")])
async def test_another_kind_of_machine_or_cpu_model_has_a_proof_of_its_own(host, other) -> None:
    host.ends = LaunchError("the guest stood still for 5 s", console_tail="SeaBIOS")
    assert not (await host.prove(other)).usable
    host.ends = None
    assert (await host.prove(VMConfig())).usable
    assert not (await host.prove(other)).usable
    assert [plan.hardware.machine for plan in host.plans] == [
        "microvm" if other.machine == "microvm" else "pc-q35-7.2", "pc-q35-7.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LaunchError("the guest stood still for 5 s", console_tail="SeaBIOS"), "the guest stood still for 5 s"),
        (
            LaunchError("QEMU stopped the guest", log_tail=DUMP),
            "QEMU stopped the guest: KVM internal error. Suberror: 1",
        ),
        # An assertion of QEMU's own: KVM refused an MSR.
        (
            LaunchError("it ended", exit_code=-6, log_tail="qemu: failed to set MSR"),
            "it ended: qemu: failed to set MSR",
        ),
        (LaunchError("it panicked", exit_code=0, console_tail=PANIC + "Attempted to kill init!"), "it panicked"),
        # That is no end: it went on.
        (LaunchError("it stood still", log_tail="Cannot allocate memory"), "it stood still: Cannot allocate memory"),
        (GuestError("the agent makes no sense", console_tail="SeaBIOS"), "the agent makes no sense"),
    ],
)
async def test_a_kvm_that_fails_the_guest_is_a_verdict_and_kept(host, error, reason) -> None:
    host.ends = error
    verdict = await host.prove(VMConfig())
    assert verdict == Verdict(usable=False, reason=reason, console_tail=error.console_tail)
    host.ends = None
    assert await host.prove(VMConfig()) == verdict
    assert (len(host.plans), host.kept()) == (1, 1)


@pytest.mark.parametrize(
    "error",
    [
        LaunchError("the guest ran out of memory", exit_code=0, console_tail=PANIC + "System is deadlocked on memory"),
        LaunchError("QEMU ended", exit_code=1, log_tail="cannot set up guest memory 'ram': Cannot allocate memory"),
        LaunchError("QEMU ended", exit_code=1, log_tail="ioctl(KVM_CREATE_VM) failed: 12 Cannot allocate memory"),
        LaunchError("QEMU ended", exit_code=-9),
        LaunchError("QEMU ended", exit_code=-7),
        LaunchError("QEMU ended", exit_code=-15),
        LaunchError("QEMU ended", exit_code=0, log_tail="qemu: terminating on signal 15 from pid 1 (systemd)"),
        NoRoom("memory", "too little is left"),
        HostError("this host refuses what keeps an emulator from it"),
    ],
)
async def test_what_says_nothing_of_kvm_is_raised_and_no_verdict_is_kept(host, error) -> None:
    host.ends = error
    for accel in ("auto", "kvm"):
        with pytest.raises(type(error)) as raised:
            await decide_accel(VMConfig(accel=accel), image=IMAGE, binary=BINARY, instance=host.instance)
        assert raised.value is error
    assert host.kept() == 0
    host.ends = None
    assert (await host.prove(VMConfig())).usable


async def test_a_verdict_that_cannot_be_kept_is_one_all_the_same(host, monkeypatch) -> None:
    def refuse(_verdict, _path) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(accelerator, "keep_verdict", refuse)
    for count in (1, 2):
        assert (await host.prove(VMConfig())).usable
        assert len(host.plans) == count
