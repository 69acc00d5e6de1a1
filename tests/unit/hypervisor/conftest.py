"""A real QEMU with a guest of a hundred bytes, and an owner of every machine a test starts."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.tiny_kernel import tiny_kernel
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import AnonymousRAM, Boot, Hardware, Launch
from vmfork.hypervisor.qemu.binary import QemuBinary, find_qemu
from vmfork.hypervisor.qemu.board import Q35
from vmfork.hypervisor.qemu.machine import QemuMachine


@pytest.fixture
async def binary() -> QemuBinary:
    need("qemu")
    return await find_qemu()


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "vm"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def launch(tmp_path, folder, binary) -> Launch:
    """The tiny guest, booted in 64 MiB under TCG."""
    (tmp_path / "kernel").write_bytes(tiny_kernel())
    (tmp_path / "initramfs").write_bytes(b"empty")
    return Launch(
        name="test",
        folder=folder,
        hardware=Hardware(machine=Q35.type_for(binary), accel="tcg", cpu_model="max", cpus=1, memory_mib=64),
        ram=AnonymousRAM(),
        start=Boot(kernel=tmp_path / "kernel", initramfs=tmp_path / "initramfs", command_line="quiet"),
        generation_id="8d8a5c4e-9f3a-4d5e-8c65-2f3f3e6a0b11",
    )


@pytest.fixture
async def start(binary, launch):
    """Starts `launch` with the given changes. In the end every machine is closed, and nothing of it is left."""
    machines: list[QemuMachine] = []
    before = open_descriptors()

    def start(**changes) -> QemuMachine:
        machine = QemuMachine.start(binary, replace(launch, **changes))
        machines.append(machine)
        return machine

    yield start
    for machine in machines:
        await machine.aclose()
        assert not machine.identity.is_alive()
        assert ProcessIdentity.of(machine.identity.pid) is None
        assert not list(machine._folder.glob("*.sock"))
    assert open_descriptors() == before


def open_descriptors() -> set[str]:
    return {f"{fd.name} {os.readlink(fd)}" for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


@pytest.fixture
def until():
    """Waits for what has no event of its own, such as what a guest has printed so far."""

    async def until(condition, *, limit_s: float = 20.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)

    return until
