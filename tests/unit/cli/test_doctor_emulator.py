"""What doctor says of the slim emulator: that it is used, or why not; nothing where there is no choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfork.cli import doctor
from vmfork.config import Places, VMConfig
from vmfork.errors import HostError
from vmfork.hypervisor.qemu import QemuBinary
from vmfork.machine.emulator import Candidate

FULL = QemuBinary(path=Path("/usr/bin/full"), version="7.2.22", release=(7, 2, 22), stamp="1")
SLIM = QemuBinary(path=Path("/usr/bin/slim"), version="7.2.22", release=(7, 2, 22), stamp="2", has_sandbox=False)
PLACES = Places(home=Path("/nowhere"), runtime=Path("/nowhere"))


@pytest.fixture
def found(monkeypatch):
    """Says what is found on this host."""

    def found(answer: Candidate | HostError | None) -> None:
        async def find_slim(hardware, full, *, places):
            assert (hardware.accel, full, places) == ("kvm", FULL, PLACES)
            if isinstance(answer, HostError):
                raise answer
            return answer

        monkeypatch.setattr(doctor, "find_slim", find_slim)

    return found


@pytest.mark.parametrize(
    ("answer", "used", "level", "said"),
    [
        (Candidate(SLIM, ()), True, "ok", "/usr/bin/slim starts machines under KVM"),
        (Candidate(SLIM, ()), False, "note", "/usr/bin/slim is for KVM alone; the full one is used"),
        (
            Candidate(SLIM, ("device a", "device b")),
            True,
            "note",
            "/usr/bin/slim has no device a, no device b; the full one is used",
        ),
        (HostError("it hangs"), True, "note", "it hangs; the full one is used"),
    ],
)
async def test_it_says_which_is_used_and_why(found, answer, used, level, said) -> None:
    found(answer)
    (check,) = await doctor._check_slim(VMConfig(), FULL, PLACES, used=used)
    assert (check.name, check.level, check.found) == ("slim qemu", level, said)


async def test_where_there_is_no_choice_nothing_is_said(found) -> None:
    found(None)
    assert await doctor._check_slim(VMConfig(), FULL, PLACES, used=True) == []
    found(HostError("not asked"))
    assert await doctor._check_slim(VMConfig(qemu="/usr/bin/full"), FULL, PLACES, used=True) == []
    assert await doctor._check_slim(VMConfig(), None, PLACES, used=True) == []
