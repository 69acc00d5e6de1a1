"""Where groups of our own can be made: below ours, never beyond a limit, and what says why not."""

from __future__ import annotations

import os

import pytest

from vmfork.host import cgroup, delegation
from vmfork.host.cgroup import OwnGroup
from vmfork.host.delegation import V1, V2, Delegation, Parent, find_delegation

ALL = "cpu memory pids"
OURS = {"cgroup.procs": f"{os.getpid()}\n"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes a hierarchy of version 2: path below the mount -> files; we are in the deepest of them."""

    def make(groups: dict[str, dict[str, str]], *, v1: dict[str, str] | None = None) -> str:
        for path, files in groups.items():
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
            kernel = {"cgroup.procs": "", "cgroup.controllers": ALL, **({"cgroup.type": "domain"} if path else {})}
            for name, text in {**kernel, **files}.items():
                (tmp_path / path / name).write_text(text)
        own = OwnGroup(V2, tmp_path / max(groups, key=len), tmp_path)
        older = {each: OwnGroup(V1, tmp_path / folder, tmp_path) for each, folder in (v1 or {}).items()}
        monkeypatch.setattr(
            cgroup, "locate_own", lambda counted: [*([older[counted]] if counted in older else []), own]
        )
        delegation._look_v1.cache_clear()
        delegation._look_v2.cache_clear()
        return str(tmp_path)

    return make


def test_the_nearest_group_that_gives_controllers_is_the_parent(tree) -> None:
    unlimited = {"memory.max": "max\n", "cpu.max": "max 100000\n"}
    top = tree({"": {}, "a": {"cgroup.subtree_control": ALL}, "a/b": {**OURS, **unlimited}})
    assert find_delegation() == Delegation((Parent(f"{top}/a", V2, ("memory", "cpu", "pids")),))


@pytest.mark.parametrize("limit", [{"memory.max": "1000\n"}, {"pids.max": "10\n"}, {"cpu.max": "1000 100000\n"}])
def test_nobody_gets_out_of_a_limit(tree, limit) -> None:
    """Below the group of a service that may have 1 GiB, machines may; beside it they would have what they like."""
    top = tree({"": {"cgroup.subtree_control": ALL}, "service": {**OURS, **limit}})
    found = find_delegation()
    assert found.parents == ()
    assert dict(found.missing).keys() == {"memory", "cpu", "pids"}
    assert all(f"{top}/service has a limit" in reason for _, reason in found.missing)


def test_a_group_without_processes_is_made_to_give_what_it_has(tree) -> None:
    top = tree({"": {}, "a": {"cgroup.subtree_control": "", "cgroup.controllers": "pids"}, "a/own": OURS})
    assert find_delegation().parents == (Parent(f"{top}/a", V2, ("pids",)),)
    assert dict(find_delegation().missing).keys() == {"memory", "cpu"}


def test_each_controller_of_version_1_has_a_group_of_its_own(tree) -> None:
    top = tree({"": {}, "v2": {}, "m": {}}, v1={"memory": "m", "cpu": "m", "pids": "m"})
    assert find_delegation().parents == tuple(Parent(f"{top}/m", V1, (each,)) for each in ("memory", "cpu", "pids"))


@pytest.mark.needs("no-root")
def test_what_is_not_ours_is_told(tree) -> None:
    top = tree({"": {"cgroup.subtree_control": ALL}, "a": OURS})
    os.chmod(top, 0o555)
    assert all("cannot be written" in reason for _, reason in find_delegation().missing)
    os.chmod(top, 0o755)
