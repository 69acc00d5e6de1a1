"""A verdict on KVM is found again where nothing has changed that it rests on, and only there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vmfork.config import Places
from vmfork.host import facts, kvm
from vmfork.machine.verdict import Verdict, find_failure, keep_verdict, locate_verdict, read_verdict

PLACES = Places(home=Path("/nowhere"), runtime=Path("/nowhere"))
PLAN = {"stamp": "1", "version": "7.2.22", "digest": "a", "machine": "pc-q35-7.2", "cpu_model": "host,migratable=on"}
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
    return locate_verdict(
        image=SimpleNamespace(digest=made["digest"]),
        binary=SimpleNamespace(stamp=made["stamp"], version=made["version"]),
        machine=made["machine"],
        cpu_model=made["cpu_model"],
        places=PLACES,
    ).name


@pytest.mark.parametrize(
    ("plan", "host"),
    [
        ({"version": "7.2.23"}, {}),
        ({"stamp": "2"}, {}),
        ({"digest": "b"}, {}),
        ({"machine": "microvm"}, {}),
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


def test_what_was_proven_is_read_as_it_was_kept(tmp_path) -> None:
    path, verdict = (
        tmp_path / "verdicts" / "kvm-1.json",
        Verdict(usable=False, reason="it hangs", console_tail="SeaBIOS"),
    )
    assert read_verdict(path) is None
    keep_verdict(verdict, path)
    assert read_verdict(path) == verdict
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_bytes(b"{")
    assert read_verdict(path) is None


def test_kvm_has_failed_where_it_ran_none_of_the_guests_that_were_tried_here(tmp_path, monkeypatch) -> None:
    places = Places(home=tmp_path, runtime=tmp_path)

    def keep(usable: bool, **more: object) -> None:
        name = name_verdict(monkeypatch, **more)
        keep_verdict(Verdict(usable=usable, reason="" if usable else "it hangs"), tmp_path / "verdicts" / name)

    name_verdict(monkeypatch)  # on this host
    assert find_failure(places) is None
    keep(True, host={(facts, "boot_id"): "the last"})
    name_verdict(monkeypatch)
    assert find_failure(places) is None
    keep(False)
    assert find_failure(places) == "it hangs"
    keep(False, plan={"digest": "b"})
    assert find_failure(places) == "it hangs"
    keep(True, plan={"cpu_model": "EPYC"})
    assert find_failure(places) is None
