"""Freezing a machine: what holds when it does not come to it."""

from __future__ import annotations

import asyncio

import pytest

from tests.timing import least_skew_s
from vmfork.adopt.secrets import Secrets
from vmfork.api.vm import VM
from vmfork.config import Instance, VMConfig
from vmfork.errors import GuestError, HookError, SecretsPresent, VMForkError
from vmfork.freeze.freeze import freeze
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.template.source import Source

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 30


@pytest.fixture
async def adopted(template_name):
    """A fork as its parts."""
    source = await Source.open(template_name, config=VMConfig(), instance=Instance())
    adopted = await (await source.fork_base()).adopt(timeout_s=LIMIT_S)
    yield adopted
    await adopted.running.aclose()


def frozen(adopted, path, **options):
    return freeze(adopted.running, path, template="t", hook_timeout_s=LIMIT_S, **{"secrets": Secrets(), **options})


async def runs_on(adopted) -> None:
    """The guest answers, with the host's clock."""
    assert adopted.running.state == "running"
    vm = VM(*adopted)
    assert (await vm.exec(["true"], timeout_s=LIMIT_S)).ok
    assert await least_skew_s(vm) <= 0.020


async def test_a_frozen_machine_stands_still(adopted, tmp_path) -> None:
    await frozen(adopted, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size > 10_000
    assert adopted.running.state == "paused"


async def test_after_an_error_beyond_the_pause_it_runs_on(adopted, tmp_path) -> None:
    """It once stood still for ever."""
    with pytest.raises(VMForkError):
        await frozen(adopted, tmp_path / "no" / "folder")
    await runs_on(adopted)


async def test_after_a_cancel_beyond_the_pause_it_runs_on(adopted, tmp_path, monkeypatch) -> None:
    paused = asyncio.Event()

    async def never(*_) -> None:
        paused.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(QemuMachine, "save_state", never)
    freezing = asyncio.create_task(frozen(adopted, tmp_path / "state"))
    await asyncio.wait_for(paused.wait(), LIMIT_S)
    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    await runs_on(adopted)


async def test_after_an_error_before_the_pause_it_runs_on(adopted, tmp_path) -> None:
    vm = VM(*adopted)
    async with await vm.start(["sleep", "1000"]):
        with pytest.raises(GuestError, match=r"refused|runs"):
            await frozen(adopted, tmp_path / "state")
    with pytest.raises(SecretsPresent):
        await frozen(adopted, tmp_path / "state", secrets=Secrets(paths=("/etc/passwd",)))
    await vm.write_file("/etc/vmfork/before-freeze.d/10", "#!/bin/sh\nexit 3\n", mode=0o755, parents=True)
    with pytest.raises(HookError):
        await frozen(adopted, tmp_path / "state")
    await runs_on(adopted)
