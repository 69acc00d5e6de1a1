"""The level of isolation follows from what applies; what is missing says why; less than was asked for is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmfork.config import Places, VMConfig
from vmfork.config.isolation import BY_DEFAULT, LEVELS
from vmfork.errors import ConfigError, HostError
from vmfork.hypervisor.base import Isolation
from vmfork.hypervisor.qemu.binary import QemuBinary
from vmfork.hypervisor.qemu.files import Reads, loads_libraries
from vmfork.machine import isolation, trial
from vmfork.machine.isolation import check_isolation, decide_containment
from vmfork.machine.trial import Proof

ALL = Proof(key="", filter="", namespaces="", mapped="", landlock="", user="")
LEVELS_OF = [
    (ALL, "full", ()),
    (replace(ALL, user="no"), "namespaces", ("user: no",)),
    (replace(ALL, namespaces="no", user="no"), "namespaces", ("user: no",)),
    (replace(ALL, namespaces="no"), "namespaces", ("user: nobody else is in a user namespace",)),
    (replace(ALL, namespaces="no", mapped="never"), "basic", ("namespaces: never",)),
    (replace(ALL, namespaces="no", mapped="never", user="no"), "basic", ("namespaces: never", "user: no")),
    (replace(ALL, namespaces="no", mapped="never", landlock="old"), "basic", ("namespaces: never", "landlock: old")),
    (replace(ALL, landlock="old"), "full", ()),  # nothing to stand in for
    (replace(ALL, filter="no"), "none", ("filter: no", "namespaces: needs filter", "user: needs filter")),
]


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path / "home", tmp_path / "run")


@pytest.fixture
def binary(tmp_path) -> QemuBinary:
    """A program that loads libraries: this Python in QEMU's place, asked for nothing."""
    return QemuBinary(path=Path("/bin/sh").resolve(), version="7.2.22", release=(7, 2, 22), stamp="1")


@pytest.mark.parametrize(("proof", "level", "missing"), LEVELS_OF)
async def test_the_level_is_what_the_parts_make(monkeypatch, places, binary, proof, level, missing) -> None:
    async def prove(users, *, runtime):
        return proof

    async def find_reads(binary, *, kept):
        return Reads((str(binary.path),))

    monkeypatch.setattr(isolation, "prove", prove)
    monkeypatch.setattr(isolation, "find_reads", find_reads)
    monkeypatch.setattr(isolation, "_find_hidden", lambda program, *, has_root: "")
    found = (await decide_containment(binary, BY_DEFAULT, places=places)).isolation
    assert (found.level, found.missing) == (level, missing)
    named = {*found.parts} | {line.partition(":")[0] for line in missing}
    assert named - {"landlock"} == {"filter", "namespaces", "user"}


async def test_a_script_is_contained_by_nothing_and_named(tmp_path, places) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\n")
    binary = QemuBinary(path=script, version="7.2.22", release=(7, 2, 22), stamp="1")
    containment = await decide_containment(binary, BY_DEFAULT, places=places)
    assert containment.isolation.level == "none"
    assert str(script) in containment.isolation.missing[0]


def test_only_a_program_that_names_a_loader_loads_libraries(tmp_path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n" * 10)
    (tmp_path / "empty").write_bytes(b"")
    assert loads_libraries(Path("/bin/sh"))
    assert not loads_libraries(script)
    assert not loads_libraries(tmp_path / "empty")
    assert not loads_libraries(trial.find_keeper())  # static


@pytest.mark.parametrize("required", LEVELS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_host_that_can_do_less_than_is_required_is_refused(level, required) -> None:
    policy = replace(BY_DEFAULT, required=required)
    given = Isolation(level=level, missing=("user: why",))
    if LEVELS.index(level) >= LEVELS.index(required):
        check_isolation(given, policy)
        return
    with pytest.raises(HostError, match=f"isolation '{required}' is required, and this host gives '{level}'") as told:
        check_isolation(given, policy)
    assert "user: why" in told.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [("isolation", "on"), ("require_isolation", "much"), ("user_ids", "0-65535"), ("user_ids", None)],
)
def test_nonsense_is_refused_by_name(field, value) -> None:
    with pytest.raises(ConfigError) as refused:
        VMConfig(**{field: value})
    assert refused.value.field == f"vm.{field}"


def test_how_it_is_kept_does_not_say_what_a_machine_is() -> None:
    assert VMConfig(isolation="off", require_isolation="none", user_ids="70000-70001").is_plain


async def test_what_was_tried_is_tried_again_for_another_keeper_or_other_rights(places, monkeypatch) -> None:
    tried = []

    async def try_all(key, users, runtime):
        tried.append(key)
        return replace(ALL, key=key)

    monkeypatch.setattr(trial, "_try_all", try_all)
    for _ in range(2):
        monkeypatch.setattr(trial, "_proofs", {})  # as in a new process
        await trial.prove(BY_DEFAULT.users, runtime=places.runtime)
    assert len(tried) == 1
    monkeypatch.setattr(trial, "_proofs", {})
    monkeypatch.setattr(trial.facts, "boot_id", lambda: "another")
    await trial.prove(BY_DEFAULT.users, runtime=places.runtime)
    assert len(tried) == 2
    await trial.prove(BY_DEFAULT.users, runtime=places.runtime, anew=True)
    assert len(tried) == 3
