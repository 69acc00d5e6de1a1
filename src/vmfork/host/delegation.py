"""Where control groups of our own can be made, and what they can limit (cgroups(7), cgroup-v2.rst).

They are made below our own group, where its limits hold for them too. Version 2 lets a group with processes give no
controllers to groups below it. So there they are made below the nearest group that can, and none is passed on the way
up that has a limit of its own: nobody gets out of a limit.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vmfork.host import cgroup
from vmfork.host.procfs import read_whole

V1, V2 = "cgroup", "cgroup2"
CONTROLLERS = ("memory", "cpu", "pids")
# How a group of ours is called, before its name.
PREFIX = "vmfork-"
# What makes a group of version 2 a limit that nobody may pass by.
_LIMITS = ("memory.max", "memory.high", "pids.max", "cpu.max")


class Parent(NamedTuple):
    """A folder below which groups can be made, the version of its hierarchy, and the controllers that they have."""

    folder: str
    kind: str
    controllers: tuple[str, ...]


class Delegation(NamedTuple):
    """Where groups can be made, and why a controller limits nothing here."""

    parents: tuple[Parent, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()


def find_delegation() -> Delegation:
    """What this host lets us limit. It is looked for once for each group that we are in."""
    owns = {controller: cgroup.locate_own(controller) for controller in CONTROLLERS}
    v1 = {each: str(own.folder) for each, groups in owns.items() for own in groups if own.kind == V1}
    # A controller that version 1 has is not in version 2.
    left = tuple(controller for controller in CONTROLLERS if controller not in v1)
    v2 = {tuple(map(str, own.to_top())) for controller in left for own in owns[controller] if own.kind == V2}
    found = [_look_v1(folder, controller) for controller, folder in v1.items()]
    found += [_look_v2(folders, left) for folders in v2]
    reasons = {controller: reason for each in found for controller, reason in each.missing}
    parents = tuple(parent for each in found for parent in each.parents)
    limited = {controller for parent in parents for controller in parent.controllers}
    missing = {each: reasons.get(each, "no control group counts it") for each in CONTROLLERS if each not in limited}
    return Delegation(parents, tuple(missing.items()))


@lru_cache(maxsize=8)
def _look_v1(folder: str, controller: str) -> Delegation:
    reason = _why_not(folder)
    return _refused(reason, (controller,)) if reason else Delegation((Parent(folder, V1, (controller,)),))


@lru_cache(maxsize=8)
def _look_v2(folders: tuple[str, ...], wanted: tuple[str, ...]) -> Delegation:
    """`folders` are our group and those above it. A process is in one group, so one gives all that can be had."""
    known = _words(f"{folders[0]}/cgroup.controllers")
    could = tuple(each for each in wanted if each in known)
    reason = "no group above gives groups below it any"
    for folder in folders:
        if given := tuple(each for each in could if _gives(folder, each)):
            reason = _why_not(folder)
            if not reason:
                return Delegation((Parent(folder, V2, given),))
        if any(_words(f"{folder}/{name}")[:1] not in ([], ["max"]) for name in _LIMITS):
            reason = f"{folder} has a limit, and processes"
            break
    return _refused(reason, could)


def _refused(reason: str, controllers: tuple[str, ...]) -> Delegation:
    return Delegation((), tuple((controller, reason) for controller in controllers))


def _gives(folder: str, controller: str) -> bool:
    """Whether groups below have the controller; it is switched on where we may and nothing stands in the way."""
    if controller in _words(f"{folder}/cgroup.subtree_control"):
        return True
    has_processes = os.path.exists(f"{folder}/cgroup.type") and bool(_words(f"{folder}/cgroup.procs"))  # but the top
    if has_processes or controller not in _words(f"{folder}/cgroup.controllers"):
        return False
    with suppress(OSError):  # not ours
        Path(folder, "cgroup.subtree_control").write_text(f"+{controller}")
        return True
    return False


def _why_not(folder: str) -> str:
    """Empty when groups can be made in `folder`, and a process of ours can go there."""
    # From one group to another goes whoever may write to the one above both (cgroup-v2.rst, delegation).
    needed = {folder: os.W_OK | os.X_OK, f"{folder}/cgroup.procs": os.W_OK}
    return next((f"{path} cannot be written" for path, right in needed.items() if not os.access(path, right)), "")


def _words(path: str) -> list[str]:
    return read_whole(path).decode(errors="replace").split()
