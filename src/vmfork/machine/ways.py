"""What a machine may reach: from before its first program on, and changed while it runs.

```
VMS/ID/network.json     a client of a machine that stands alone holds its policy: gone when it ends in order
```
A policy is held by a process, and ends with it. A machine that stands alone may have another client hold one, of which
the others read here that their programs are to use its proxy.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, GuestError, PortError, SetupError, StoreBusy
from vmfork.host.folders import find_content, write_whole
from vmfork.host.process import ProcessIdentity
from vmfork.machine.card import check_card
from vmfork.network.variables import proxy_env
from vmfork.records import find_value, write_record
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from vmfork.machine.running import Running
    from vmfork.network.decision import NetworkCounts
    from vmfork.network.gate import Gate
    from vmfork.network.policy import NetworkPolicy
    from vmfork.network.ways import Ways

_LIMIT_S = 30.0
_NOTE = "network.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPolicy:
    """That a process holds the policy of a machine: `all`, or the entries of a list."""

    process: ProcessIdentity
    allows: tuple[str, ...]


def load_ways() -> ModuleType:
    """What policies, proxies and HTTP are made of: 25 ms, which only those pay whose machines have a way out."""
    from vmfork.network import ways  # noqa: PLC0415 - as the line above says

    return ways


def with_proxy(env: Mapping[str, str], policy: NetworkPolicy, hostname: str) -> Mapping[str, str]:
    """The environment of a fork's programs: with the proxy's variables, where it has one and they are not set."""
    return env if policy == "none" else {**proxy_env(hostname, env), **env}


def find_program_env(running: Running) -> Mapping[str, str]:
    """What a program needs to find the proxy, beside what every program of the machine has."""
    ways = running.ways
    is_needed = not ways.is_in_env and ways.gate.policy != "none" if ways is not None else _is_held_elsewhere(running)
    if not is_needed:
        return {}
    return proxy_env(running.facts.identity.hostname, {})


def find_inherited(running: Running) -> Mapping[str, str]:
    """The variables of the proxy that a copy of the machine has from it, and that are not to be the copy's."""
    has_some = running.is_shared or running.ways is not None
    return proxy_env(running.facts.identity.hostname, {}) if has_some else {}


def _is_held_elsewhere(running: Running) -> bool:
    return running.is_shared and find_held(running.folder.path) is not None


async def begin_ways(running: Running, policy: NetworkPolicy, *, timeout_s: float) -> None:
    """The policy holds in a machine that has run no program yet. Raises `SetupError`."""
    if policy == "none":
        return
    try:
        running.ways = await _open_ways(running, policy, is_in_env=True, timeout_s=timeout_s)
    except (GuestError, ConfigError) as error:
        raise SetupError("network", str(error), hint=error.hint) from error
    running.policy = policy


async def begin_ways_anew(running: Running, policy: NetworkPolicy, *, timeout_s: float) -> None:
    """As before, over the connection of a client: a machine that was made to stand alone lost what its maker held."""
    if policy != "none":
        running.ways = await _open_ways(running, policy, is_in_env=True, timeout_s=timeout_s)
        running.policy = policy
        _note(running, policy)


async def set_network(running: Running, policy: NetworkPolicy) -> None:
    """The policy holds from now on, and connections that are against it are reset. After an error it is `none`.

    Raises `StoreBusy` when another client holds one, `PortError` when a program of the guest listens where the proxy
    is to, and `GuestFileError` when the guest's hosts file cannot be written.
    """
    running.check_open()
    if running.facts.card is not None:
        check_card(running.facts.card.choice, policy)
    running.policy = "none"
    if running.ways is not None:
        await _change(running.ways, policy)
    elif policy != "none":
        running.ways = await _open_held(running, policy)
    else:
        return  # what another client holds is not ours to end
    running.policy = policy
    _note(running, policy)


async def _change(ways: Ways, policy: NetworkPolicy) -> None:
    if policy == "none":
        await ways.aclose()
        return
    ways.gate.change(policy)
    await ways.open()


async def _open_held(running: Running, policy: NetworkPolicy) -> Ways:
    try:
        return await _open_ways(running, policy, is_in_env=False, timeout_s=_LIMIT_S)
    except PortError as error:
        held = find_held(running.folder.path) if error.reason == ErrorCode.EXISTS else None
        if held is None:
            raise
        raise StoreBusy(f"the network of VM {running.id}", f"process {held.process.pid}") from error


async def _open_ways(running: Running, policy: NetworkPolicy, *, is_in_env: bool, timeout_s: float) -> Ways:
    network = load_ways()
    gate = network.Gate(policy, is_near=running.names.has)
    ways: Ways = network.Ways(running.agent, gate, running.names, is_in_env=is_in_env)
    await ways.open(timeout_s=timeout_s)
    return ways


def find_gate(running: Running) -> Gate | None:
    """What decides for the machine; `None` where we hold no policy for it."""
    return None if running.ways is None else running.ways.gate


def count_connections(running: Running) -> NetworkCounts:
    """How many connections out of it there were and are, by us."""
    gate = find_gate(running)
    none: NetworkCounts = load_ways().NetworkCounts()
    return none if gate is None else gate.counts


def _note(running: Running, policy: NetworkPolicy) -> None:
    """Other clients of a machine can read whether we hold its policy, until our connection to it ends."""
    if not running.is_shared:
        return
    path, closed = running.folder.path / _NOTE, running.agent.closed
    # Once we hold none, the note is that of whoever holds one next.
    closed.remove_done_callback(_Forget(path))
    if policy == "none":
        _Forget(path)()
        return
    with suppress(OSError):  # the policy holds without its note
        process = ProcessIdentity.of(os.getpid())
        assert process is not None
        allows = (policy,) if isinstance(policy, str) else policy.entries
        write_whole(path, write_record(HeldPolicy(process=process, allows=allows)))
        closed.add_done_callback(_Forget(path))


@dataclass(frozen=True, slots=True)
class _Forget:
    """The note is gone. Those of one note are equal, so that a callback can be taken back."""

    note: Path

    def __call__(self, _closed: object = None) -> None:
        with suppress(OSError):
            self.note.unlink(missing_ok=True)


def find_held(folder: Path) -> HeldPolicy | None:
    """What is held for the machine of that folder, where a client holds a policy."""
    held = find_value(HeldPolicy, find_content(folder / _NOTE))
    return held if held is not None and held.process.is_alive() else None
