"""How far a machine's emulator is kept from this host: what the host lets its user do, tried once, and what is asked.

| level | parts | what it takes |
| --- | --- | --- |
| full | filter, namespaces, user | root who may mount, and has the user ids |
| namespaces | filter, namespaces | root who may mount, or a user who may make user namespaces |
| basic | filter; landlock, where the kernel has it; as root user, where it may be | a kernel with seccomp |
| none | | the policy is off, or the emulator is a script |

No level asks for the control groups by which memory, CPU time and processes of an emulator are limited: a host that
lets its user make none is as good as any other at keeping it in.
"""

from __future__ import annotations

import shlex
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config.isolation import LEVELS
from vmfork.errors import HostError
from vmfork.host.delegation import CONTROLLERS, Delegation, find_delegation
from vmfork.host.jail import find_preload
from vmfork.hypervisor.base import Containment, Isolation
from vmfork.hypervisor.qemu import find_reads
from vmfork.machine.trial import FILTER, NAMESPACES, USER, prove

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places
    from vmfork.config.isolation import IsolationLevel, IsolationPolicy
    from vmfork.hypervisor.qemu import QemuBinary


_HIDDEN = "others may not read "
NETWORK, _OPEN = "network", "its card is open: it has this host's network, with the loopback"
# What a controller limits, as a part.
_LIMITS = {"memory": "memory", "cpu": "cpu", "pids": "processes"}


async def decide_containment(
    binary: QemuBinary, policy: IsolationPolicy, *, places: Places, outward: bool = False
) -> Containment:
    """How `binary` is started here under `policy`; `outward`, with the network of the host.

    Raises what `check_isolation` raises. What this host can do is tried the first time, and remembered.
    """
    containment = await _decide(binary, policy, places)
    if outward:
        containment = replace(containment, isolation=_opened(containment.isolation), outward=True)
    check_isolation(containment.isolation, policy)
    return containment


def _opened(isolation: Isolation) -> Isolation:
    """That of a machine whose card is open: whatever else keeps it from the host, the host's network does not."""
    level = min(isolation.level, "basic", key=LEVELS.index)
    return replace(isolation, level=level, missing=(*isolation.missing, f"{NETWORK}: {_OPEN}"))


def find_todo(isolation: Isolation) -> str:
    """What its user can do for a higher level; empty where nothing is known."""
    hidden = next((line.rpartition(_HIDDEN)[2] for line in isolation.missing if f"{USER}: {_HIDDEN}" in line), "")
    if not hidden:
        return ""
    return (
        f"let others enter or read it (chmod o+rX {shlex.quote(hidden)}), or install vmfork where they may, such as"
        " /opt: then each machine gets a user id of its own"
    )


def check_isolation(isolation: Isolation, policy: IsolationPolicy) -> None:
    """Raises `HostError` when that is less than the policy requires, and says what is missing."""
    if LEVELS.index(isolation.level) < LEVELS.index(policy.required):
        raise HostError(
            f"isolation {policy.required!r} is required, and this host gives {isolation.level!r}"
            f" ({'; '.join(isolation.missing)})",
            hint="give the host what is missing, or require less (vm.require_isolation); vmfork doctor tells more",
        )


async def _decide(binary: QemuBinary, policy: IsolationPolicy, places: Places) -> Containment:
    delegation = _delegate(policy)
    if policy.is_off:
        return Containment(isolation=_isolation_of({FILTER: "switched off"}, delegation))
    reads = await find_reads(binary, kept=places.emulators)
    if not reads.paths:
        reason = f"{binary.path} is no program that loads libraries"
        return Containment(isolation=_isolation_of({FILTER: reason}, delegation), groups=delegation.parents)
    proof = await prove(policy.users, runtime=places.runtime)
    reasons = proof.reasons()
    if not reasons[USER] and proof.needs_mapping and not reasons[NAMESPACES]:
        reasons[USER] = "nobody else is in a user namespace"
    elif not reasons[USER] and (hidden := _find_hidden(binary.path, has_root=not reasons[NAMESPACES])):
        reasons[USER] = _HIDDEN + hidden
    return Containment(
        isolation=_isolation_of(reasons, delegation),
        reads=reads.paths,
        mapped=proof.needs_mapping,
        users=policy.users,
        groups=delegation.parents,
    )


def _delegate(policy: IsolationPolicy) -> Delegation:
    if policy.is_off or not policy.in_groups:
        return Delegation(missing=tuple((controller, "switched off") for controller in CONTROLLERS))
    return find_delegation()


def _isolation_of(reasons: dict[str, str], delegation: Delegation) -> Isolation:
    """`reasons` as `Proof.reasons` gives them. Without the filter there is nothing but what groups limit."""
    if reasons[FILTER]:
        reasons = {FILTER: reasons[FILTER], NAMESPACES: f"needs {FILTER}", USER: f"needs {FILTER}"}
    parts = tuple(part for part, reason in reasons.items() if not reason)
    level: IsolationLevel = "basic" if FILTER in parts else "none"
    if NAMESPACES in parts:
        level = "full" if USER in parts else "namespaces"
    missing = dict(delegation.missing)
    limits = {_LIMITS[controller]: missing.get(controller, "") for controller in CONTROLLERS}
    parts = (*parts, *(part for part, reason in limits.items() if not reason))
    reasons = reasons | limits
    return Isolation(
        level=level, parts=parts, missing=tuple(f"{part}: {reason}" for part, reason in reasons.items() if reason)
    )


def _find_hidden(program: Path, *, has_root: bool) -> str:
    """The first thing on the way to what an emulator reads that another user may not enter or read; empty: none.

    In a root of its own only the files count: the folders above them are new.
    """
    for path, bits in ((program, 0o5), (find_preload(), 0o4)):
        if path.stat().st_mode & bits != bits:
            return str(path)
        for parent in () if has_root else path.parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                return str(parent)
    return ""
