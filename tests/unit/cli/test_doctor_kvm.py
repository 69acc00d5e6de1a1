"""What doctor says of KVM: whether it is used, why not, and what the guest printed that it failed."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from vmfork.cli import doctor
from vmfork.config import Places, VMConfig
from vmfork.errors import HostError, NoRoom
from vmfork.host.kvm import Refusal
from vmfork.machine.verdict import Verdict

PLACES = Places(home=Path("/nowhere"), runtime=Path("/nowhere"))
HANGS = Verdict(usable=False, reason="the guest stood still for 5 s", console_tail="SeaBIOS\nBooting from ROM..")


@pytest.fixture
def proven(monkeypatch):
    """Says how the proof ends; the list tells for each proof whether it was demanded anew."""

    def proven(verdict: Verdict) -> list[bool]:
        asked = []

        async def prove_kvm(config, *, image, binary, instance, anew):
            asked.append(anew)
            return verdict

        monkeypatch.setattr(doctor.kvm, "find_refusal", lambda: None)
        monkeypatch.setattr(doctor, "prove_kvm", prove_kvm)
        return asked

    return proven


async def check(config: VMConfig, *, recheck: bool = False) -> doctor.Check:
    image, binary = SimpleNamespace(), SimpleNamespace()
    return await doctor._check_kvm(config, image, binary, PLACES, lambda _event: None, recheck=recheck)


async def test_a_kvm_that_was_proven_is_used(proven) -> None:
    proven(Verdict(usable=True, reason=""))
    found = await check(VMConfig())
    assert (found.level, found.found) == ("ok", "proven: it runs the guest, and is used")


@pytest.mark.parametrize("recheck", [False, True])
async def test_a_proof_is_made_anew_where_that_is_asked(proven, recheck) -> None:
    asked = proven(Verdict(usable=True, reason=""))
    await check(VMConfig(), recheck=recheck)
    assert asked == [recheck]


@pytest.mark.parametrize(("accel", "level"), [("auto", "note"), ("kvm", "fail")])
async def test_one_that_fails_the_guest_is_told_with_the_reason_and_the_console(proven, accel, level) -> None:
    proven(HANGS)
    found = await check(VMConfig(accel=accel))
    assert (found.level, found.detail) == (level, HANGS.console_tail)
    assert f"does not run the guest: {HANGS.reason}" in found.found
    assert found.found.endswith("TCG is used: slower, but it runs") == (accel == "auto")


@pytest.mark.parametrize(
    "error",
    [
        NoRoom("memory", "too little memory is left", log="the arithmetic", hint="close some"),
        HostError("this host refuses what keeps an emulator from it", log="the arithmetic", hint="close some"),
    ],
)
async def test_a_proof_that_could_not_be_made_is_a_finding_among_the_others(monkeypatch, tmp_path, error) -> None:
    async def prove_kvm(_config, **_options):
        raise error

    async def find_emulator(_config, *, places):
        return SimpleNamespace(path=Path("/nowhere/qemu"), version="7.2.22", release=(7, 2, 22))

    async def check(*_arguments, **_options):
        return []

    image = SimpleNamespace(name="default", kernel_release="6.12")
    monkeypatch.setattr(doctor.kvm, "find_refusal", lambda: None)
    monkeypatch.setattr(doctor, "prove_kvm", prove_kvm)
    monkeypatch.setattr(doctor, "find_emulator", find_emulator)
    monkeypatch.setattr(doctor, "_check_image", lambda *_: (image, doctor.Check("image", "ok", "it is here")))
    monkeypatch.setattr(doctor, "_check_card", check)
    monkeypatch.setattr(doctor, "_check_slim", check)

    async def check_isolation(*_arguments):
        return doctor.Check("isolation", "ok", "jailed")

    monkeypatch.setattr(doctor, "_check_isolation", check_isolation)
    places = Places(home=tmp_path, runtime=tmp_path)
    checks = {check.name: check for check in await doctor.examine(VMConfig(), places, lambda _event: None)}
    found = checks["kvm"]
    assert (found.level, found.todo, found.detail) == ("fail", "close some", "the arithmetic")
    assert found.found == f"/dev/kvm is here, and could not be proven: {error.message}"
    assert {"qemu", "image", "isolation", "memory", "room", "space", "home", "runtime"} <= checks.keys()


async def test_one_that_may_not_be_opened_is_told_with_the_command_that_changes_it(monkeypatch) -> None:
    command = "sudo usermod -aG kvm me, then log in again"
    refusal = Refusal("/dev/kvm may not be opened by me", command, forbidden=True)
    monkeypatch.setattr(doctor.kvm, "find_refusal", lambda: refusal)
    found = await check(VMConfig())
    assert (found.level, found.todo) == ("note", command)
    assert found.found == "/dev/kvm may not be opened by me; TCG is used: slower, but it runs"


@pytest.mark.parametrize("verbose", [False, True])
def test_the_console_is_shown_to_who_asks_for_details(monkeypatch, verbose) -> None:
    async def examine(*_arguments, recheck):
        assert recheck
        return [doctor.Check("kvm", "note", "it hangs", detail=HANGS.console_tail)]

    monkeypatch.setattr(doctor, "examine", examine)
    done = CliRunner().invoke(doctor.command, ["--recheck", *(["-v"] if verbose else [])], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert ("      | SeaBIOS\n      | Booting from ROM..\n" in done.output) == verbose


@pytest.mark.parametrize(("accel", "count"), [("auto", 1), ("tcg", 0)])
@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_who_may_not_open_kvm_is_told_beside_a_report_that_goes_elsewhere(
    monkeypatch, caplog, accel, count, argv
) -> None:
    async def examine(*_arguments, **_options):
        return []

    forbidden = Refusal("/dev/kvm may not be opened by me", "sudo usermod -aG kvm me", forbidden=True)
    monkeypatch.setenv("VMFORK_VM_ACCEL", accel)
    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setattr(doctor.kvm, "find_refusal", lambda: forbidden)
    doctor.kvm.warn_if_forbidden.cache_clear()
    with caplog.at_level(logging.WARNING, "vmfork"):
        CliRunner().invoke(doctor.command, argv, catch_exceptions=False)
    doctor.kvm.warn_if_forbidden.cache_clear()
    assert [forbidden.todo in record.getMessage() for record in caplog.records] == [True] * count
