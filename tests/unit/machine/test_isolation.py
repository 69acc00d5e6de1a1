"""The level of isolation follows from what applies; what is missing says why; less than was asked for is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmfork.config import Places, VMConfig
from vmfork.config.isolation import BY_DEFAULT, LEVELS
from vmfork.errors import ConfigError, HostError
from vmfork.host.delegation import CONTROLLERS, Delegation, Parent
from vmfork.hypervisor.base import Isolation
from vmfork.hypervisor.qemu.binary import QemuBinary
from vmfork.hypervisor.qemu.files import Reads, loads_libraries
from vmfork.machine import isolation, trial
from vmfork.machine.isolation import check_isolation, decide_containment, find_todo
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


def be_host_of(proof, monkeypatch) -> None:
    """What this host can do is as `proof` says."""

    async def prove(users, *, runtime):
        return proof

    monkeypatch.setattr(isolation, "prove", prove)
    monkeypatch.setattr(isolation, "find_reads", find_sh_reads)
    monkeypatch.setattr(isolation, "find_delegation", Delegation)
    monkeypatch.setattr(isolation, "_find_hidden", lambda program, *, has_root: "")


@pytest.mark.parametrize(("proof", "level", "missing"), LEVELS_OF)
async def test_the_level_is_what_the_parts_make(monkeypatch, places, binary, proof, level, missing) -> None:
    be_host_of(proof, monkeypatch)
    found = (await decide_containment(binary, BY_DEFAULT, places=places)).isolation
    assert (found.level, found.missing) == (level, missing)
    named = {*found.parts} | {line.partition(":")[0] for line in missing}
    assert named - {"landlock"} == {"filter", "namespaces", "user", "memory", "cpu", "processes"}


def groups_of(found: Isolation) -> tuple[set[str], set[str]]:
    """Which of what groups limit applies, and what is said of the others."""
    limits = {"memory", "cpu", "processes"}
    return limits & {*found.parts}, {line for line in found.missing if line.partition(":")[0] in limits}


@pytest.mark.parametrize("policy", [replace(BY_DEFAULT, is_off=True), replace(BY_DEFAULT, in_groups=False)])
async def test_what_is_switched_off_limits_nothing_and_says_so(tmp_path, places, policy) -> None:
    containment = await decide_containment(make_script(tmp_path), policy, places=places)
    assert containment.groups == ()
    switched_off = {f"{part}: switched off" for part in ("memory", "cpu", "processes")}
    assert groups_of(containment.isolation) == (set(), switched_off)


async def test_what_cannot_be_limited_is_named_and_the_rest_is(monkeypatch, tmp_path, places) -> None:
    """A script's too: what it starts is limited with it."""
    missing = tuple((each, "no control group counts it") for each in CONTROLLERS if each != "pids")
    parent = Parent("/g", "cgroup2", ("pids",))
    monkeypatch.setattr(isolation, "find_delegation", lambda: Delegation((parent,), missing))
    containment = await decide_containment(make_script(tmp_path), BY_DEFAULT, places=places)
    assert containment.groups == (parent,)
    told = {"memory: no control group counts it", "cpu: no control group counts it"}
    assert groups_of(containment.isolation) == ({"processes"}, told)


def make_script(folder: Path) -> QemuBinary:
    script = folder / "qemu"
    script.write_text("#!/bin/sh\n")
    return QemuBinary(path=script, version="7.2.22", release=(7, 2, 22), stamp="1")


async def test_a_script_is_contained_by_nothing_and_named(tmp_path, places) -> None:
    binary = make_script(tmp_path)
    containment = await decide_containment(binary, BY_DEFAULT, places=places)
    assert containment.isolation.level == "none"
    assert str(binary.path) in containment.isolation.missing[0]


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
    [
        ("isolation", "on"),
        ("require_isolation", "much"),
        ("user_ids", "0-65535"),
        ("user_ids", None),
        ("control_groups", "no"),
        ("cpu_weight", 0),
        ("cpu_weight", 10001),
    ],
)
def test_nonsense_is_refused_by_name(field, value) -> None:
    with pytest.raises(ConfigError) as refused:
        VMConfig(**{field: value})
    assert refused.value.field == f"vm.{field}"


def test_how_it_is_kept_does_not_say_what_a_machine_is() -> None:
    assert VMConfig(isolation="off", require_isolation="none", user_ids="70000-70001").is_plain
    assert VMConfig(control_groups="off", cpu_weight=50).is_plain


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


@pytest.mark.parametrize("what", ["folder", "library"])
async def test_what_others_may_not_read_costs_the_user_and_says_what_to_do(
    monkeypatch, tmp_path, places, binary, what
) -> None:
    """vmfork in a home of mode 0700 is the usual way to lose the level `full`."""

    async def prove(users, *, runtime):
        return replace(ALL, namespaces="no", mapped="never")

    private = tmp_path / "a home"
    private.mkdir(mode=0o700 if what == "folder" else 0o755)
    library = private / "preload.so"
    library.touch(mode=0o644 if what == "folder" else 0o600)
    for parent in (tmp_path, tmp_path.parent):
        parent.chmod(0o755)
    monkeypatch.setattr(isolation, "prove", prove)
    monkeypatch.setattr(isolation, "find_reads", find_sh_reads)
    monkeypatch.setattr(isolation, "find_preload", lambda: library)
    found = (await decide_containment(binary, BY_DEFAULT, places=places)).isolation
    hidden = private if what == "folder" else library
    assert f"user: others may not read {hidden}" in found.missing
    assert find_todo(found).startswith(f"let others enter or read it (chmod o+rX '{hidden}')")


def test_where_nothing_can_be_done_nothing_is_said() -> None:
    assert find_todo(Isolation(level="namespaces", missing=("user: only root can give it",))) == ""


async def find_sh_reads(binary, *, kept) -> Reads:
    return Reads((str(binary.path),))


@pytest.mark.parametrize(("proof", "level", "missing"), LEVELS_OF)
async def test_with_the_hosts_network_it_is_basic_at_most(monkeypatch, places, binary, proof, level, missing) -> None:
    be_host_of(proof, monkeypatch)
    shut = await decide_containment(binary, BY_DEFAULT, places=places)
    opened = await decide_containment(binary, BY_DEFAULT, places=places, outward=True)
    assert (shut.outward, opened.outward) == (False, True)
    assert opened.isolation.parts == shut.isolation.parts  # what else keeps it in is as it was
    assert opened.isolation.level == ("none" if level == "none" else "basic")
    assert opened.isolation.missing[:-1] == missing
    assert "host's network" in opened.isolation.missing[-1]
    strict = replace(BY_DEFAULT, required="namespaces")
    with pytest.raises(HostError, match="its card is open" if level in ("namespaces", "full") else "required"):
        await decide_containment(binary, strict, places=places, outward=True)
