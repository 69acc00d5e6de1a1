"""A machine that is booted once more, into the file that the first one wrote to."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from vmfork.errors import LaunchError
from vmfork.machine import booted
from vmfork.machine.booted import boot_machine

DIED = "the guest panicked: Fatal exception in interrupt (the machine's agent is gone)"
PLAN = SimpleNamespace(boot_timeout_s=1.0, hardware=SimpleNamespace(accel="tcg"))
SIZE = 1 << 20


class Base:
    async def adopt(self, request, *, timeout_s: float) -> str:
        return f"adopted within {timeout_s:g} s"


@pytest.mark.parametrize("deaths", [0, 1, 2])
async def test_its_memory_is_as_new_whenever_it_is_booted_and_after_the_last_failure(monkeypatch, deaths: int) -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, SIZE)
    found: list[bytes] = []

    async def boot_base(plan, *, instance, memory_fd: int, watch) -> Base:
        found.append(os.pread(memory_fd, 5, 4096))
        os.pwrite(memory_fd, b"wrote", 4096)
        if len(found) <= deaths:
            raise LaunchError(DIED)
        return Base()

    monkeypatch.setattr(booted, "boot_base", boot_base)
    if deaths < 2:
        assert await boot_machine(PLAN, instance=None, memory_fd=fd) == "adopted within 1 s"
    else:
        with pytest.raises(LaunchError):
            await boot_machine(PLAN, instance=None, memory_fd=fd)
    assert found == [bytes(5)] * min(deaths + 1, 2)
    assert os.fstat(fd).st_size == SIZE
    assert os.pread(fd, 5, 4096) == (b"wrote" if deaths < 2 else bytes(5))
    os.close(fd)
