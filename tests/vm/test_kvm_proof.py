"""KVM is proven by booting, once, and its verdict kept; this very machine's is the test, whatever it is."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from vmfork.aio import VM
from vmfork.config import VMConfig
from vmfork.errors import HostError
from vmfork.host import facts
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import open_image
from vmfork.machine import accelerator
from vmfork.machine.accelerator import PROOF_LIMIT_S, decide_hardware, prove_kvm

pytestmark = pytest.mark.vm


@pytest.fixture
async def here(template_name, instance, tmp_path):
    """What a proof needs, with a HOME of its own in which nothing was proven yet."""
    if not facts.kvm_device().accessible:
        pytest.skip("there is no /dev/kvm here that may be opened")
    image = open_image("default", images_dir=instance.images)
    return {"image": image, "binary": await find_qemu(), "places": replace(instance, home=tmp_path)}


async def test_the_verdict_comes_from_a_boot_and_is_kept(here, monkeypatch) -> None:
    steps = []
    begin = time.monotonic()
    verdict = await prove_kvm(VMConfig(), **here, progress=lambda event: steps.append(event.step))
    assert time.monotonic() - begin < PROOF_LIMIT_S + 10
    assert verdict.usable == (verdict.reason == "")
    assert steps[0] == "proving that KVM runs the guest"
    assert verdict.reason in steps[1]
    assert await VM.list() == []

    async def no_boot(*_arguments: object, **_options: object) -> None:
        pytest.fail("it was proven before")

    monkeypatch.setattr(accelerator, "boot_base", no_boot)
    assert await prove_kvm(VMConfig(), **here) == verdict
    hardware = await decide_hardware(VMConfig(), **here)
    assert hardware.accel == ("kvm" if verdict.usable else "tcg")
    assert (await decide_hardware(VMConfig(accel="tcg"), **here)).accel == "tcg"
    if not verdict.usable:
        with pytest.raises(HostError, match="KVM cannot run the guest") as demanded:
            await decide_hardware(VMConfig(accel="kvm"), **here)
        assert "auto or tcg" in demanded.value.hint
