"""`vmfork fork`: who may not open KVM is told that the forks of a machine under TCG are slow, and what mends it."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Self

import pytest
from click.testing import CliRunner

from vmfork.cli import fork
from vmfork.host import kvm
from vmfork.host.kvm import Refusal

FORBIDDEN = Refusal("/dev/kvm may not be opened by me", "sudo usermod -aG kvm me", forbidden=True)


class Machine(SimpleNamespace):
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None: ...

    async def aclose(self) -> None: ...

    async def fork(self, count, **_options) -> list[Machine]:
        return [Machine(id=f"fork-{number}") for number in range(count)]


@pytest.fixture
def forked(monkeypatch, tmp_path, caplog):
    """Forks a machine twice, by one command; what was said of it."""

    def forked(*, accel: str, refusal: Refusal | None = FORBIDDEN) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(fork.VM, "connect", lambda vm_id: Machine(id=vm_id, accel=accel))
        monkeypatch.setattr(kvm, "find_refusal", lambda: refusal)
        kvm.warn_if_forbidden.cache_clear()
        with caplog.at_level(logging.WARNING, "vmfork"):
            done = CliRunner().invoke(fork.command, ["vm", "-n", "2", "--json"], catch_exceptions=False)
        assert json.loads(done.stdout) == {"parent": "vm", "forked": ["fork-0", "fork-1"]}
        return [record.getMessage() for record in caplog.records]

    yield forked
    kvm.warn_if_forbidden.cache_clear()


def test_who_may_not_open_kvm_is_told_once_with_what_mends_it(forked) -> None:
    (said,) = forked(accel="tcg")
    assert said.startswith(f"note: {FORBIDDEN.reason}: TCG is used")
    assert FORBIDDEN.todo in said


@pytest.mark.parametrize(
    ("accel", "refusal", "wanted"),
    [
        ("kvm", FORBIDDEN, "auto"),
        ("tcg", None, "auto"),
        ("tcg", Refusal("/dev/kvm does not exist"), "auto"),
        ("tcg", FORBIDDEN, "tcg"),
    ],
)
def test_where_that_is_not_why_nothing_is_said(forked, monkeypatch, accel, refusal, wanted) -> None:
    monkeypatch.setenv("VMFORK_VM_ACCEL", wanted)
    assert forked(accel=accel, refusal=refusal) == []
