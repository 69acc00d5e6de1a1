"""What is told of a KVM that does not run the guest, QEMU's complaint, not the dump behind it; how long that holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vmfork.errors import LaunchError
from vmfork.host import facts, kvm
from vmfork.machine.accelerator import _digest_known, _explain_failure

DUMP = "KVM internal error. Suberror: 1\nemulation failure\nEAX=00000000 EBX=00000000\nCode=05 83 fa 0f"


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


PLAN = {"stamp": "1", "version": "7.2.22", "digest": "a", "cpu_model": "host,migratable=on"}
HOST = {
    (facts, "boot_id"): "one boot",
    (facts, "kernel_release"): "6.1.0-1",
    (kvm, "read_parameters"): {"kvm_amd/npt": "1"},
}


def name_verdict(monkeypatch, *, plan=None, host=None) -> str:
    """How a verdict is called that was found by such a plan on such a host."""
    for (module, function), answer in {**HOST, **(host or {})}.items():
        monkeypatch.setattr(module, function, lambda answer=answer: answer)
    made = {**PLAN, **(plan or {})}
    return _digest_known(
        SimpleNamespace(
            binary=SimpleNamespace(stamp=made["stamp"], version=made["version"]),
            image=SimpleNamespace(digest=made["digest"]),
            hardware=SimpleNamespace(cpu_model=made["cpu_model"]),
        )
    )


@pytest.mark.parametrize(
    ("plan", "host"),
    [
        ({"version": "7.2.23"}, {}),
        ({"stamp": "2"}, {}),
        ({"digest": "b"}, {}),
        ({"cpu_model": "EPYC"}, {}),
        ({}, {(facts, "boot_id"): "the next"}),
        ({}, {(facts, "kernel_release"): "6.1.0-2"}),
        ({}, {(kvm, "read_parameters"): {"kvm_amd/npt": "0"}}),
    ],
)
def test_a_verdict_is_found_again_only_where_nothing_has_changed(monkeypatch, plan, host) -> None:
    first = name_verdict(monkeypatch)
    assert name_verdict(monkeypatch) == first
    assert name_verdict(monkeypatch, plan=plan, host=host) != first
