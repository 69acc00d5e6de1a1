"""KVM is proven by booting, once, and its verdict kept; this very machine's is the test, whatever it is."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.aio import VM
from vmfork.config import Instance, VMConfig
from vmfork.errors import HostError
from vmfork.host import kvm
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import ImageStore
from vmfork.machine import accelerator
from vmfork.machine.accelerator import decide_accel, prove_kvm

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

# How long it may take to get from a KVM that does not run the guest to TCG.
REFUSED_WITHIN_S = 6.0


@pytest.fixture
async def here(template_name, instance, tmp_path):
    """What a proof needs, with a HOME of its own in which nothing was proven yet."""
    need("kvm")
    image = ImageStore(instance.images).open("default")
    return {"image": image, "binary": await find_qemu(), "instance": Instance(replace(instance, home=tmp_path))}


def read_waited_s() -> float:
    """Seconds in which somebody on this host waited for a CPU (Linux, Documentation/accounting/psi.rst)."""
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:  # a kernel that does not count it
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


def listened(here, steps) -> dict:
    """The same, told to `steps`."""
    instance = here["instance"]
    return {**here, "instance": replace(instance, progress=lambda event: steps.append(event.step))}


@pytest.mark.qemu
async def test_the_verdict_comes_from_a_boot_and_is_kept(here, monkeypatch) -> None:
    steps = []
    begin = time.monotonic()
    verdict = await prove_kvm(VMConfig(), **listened(here, steps))
    assert verdict.usable or time.monotonic() - begin < REFUSED_WITHIN_S
    assert verdict.usable == (verdict.reason == "")
    assert steps[0] == "proving that KVM runs the guest"
    assert verdict.reason in steps[1]
    assert await VM.list() == []

    async def no_boot(*_arguments: object, **_options: object) -> None:
        pytest.fail("it was proven before")

    monkeypatch.setattr(accelerator, "boot_base", no_boot)
    assert await prove_kvm(VMConfig(), **here) == verdict
    assert await decide_accel(VMConfig(), **here) == ("kvm" if verdict.usable else "tcg")
    assert await decide_accel(VMConfig(accel="tcg"), **here) == "tcg"
    if not verdict.usable:
        with pytest.raises(HostError, match="KVM cannot run the guest") as demanded:
            await decide_accel(VMConfig(accel="kvm"), **here)
        assert "auto or tcg" in demanded.value.hint


async def test_a_kvm_on_which_the_guest_stands_still_is_given_up(here) -> None:
    """This CPU model asks for nothing that a host could lack, so the guest starts, and hangs where KVM is broken."""
    config = VMConfig(cpu_model="qemu64")
    begin, begin_waited_s = time.monotonic(), read_waited_s()
    verdict = await prove_kvm(config, **here)
    if verdict.usable:
        need("refusing-kvm", found=False)
    # Other tests run on the same cores, and what the guest waits for them does not count.
    assert time.monotonic() - begin < REFUSED_WITHIN_S + (read_waited_s() - begin_waited_s)
    assert "stood still" in verdict.reason or "stopped the guest" in verdict.reason
    assert "SeaBIOS" in verdict.console_tail
    kept = next((here["instance"].places.home / "verdicts").iterdir())
    assert json.loads(kept.read_bytes())["console_tail"] == verdict.console_tail


async def test_a_verdict_holds_for_these_module_parameters_alone(here, monkeypatch) -> None:
    first = await prove_kvm(VMConfig(), **here)
    monkeypatch.setattr(kvm, "read_parameters", lambda: {"kvm/other": "Y"})
    steps = []
    assert await prove_kvm(VMConfig(), **listened(here, steps)) == first
    assert steps[0] == "proving that KVM runs the guest"
