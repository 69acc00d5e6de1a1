"""The handshake that makes a machine unique and current. Without its confirmation no machine is handed out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.adopt.clock import set_clock
from vmfork.errors import AdoptError, DeadlineExceeded, GuestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.adopt.identity import Identity
    from vmfork.agent.client import AgentClient
    from vmfork.wire.message import ItemOutcome

_SHOWN = 200  # bytes of what the guest shows, in a message


@dataclass(frozen=True, slots=True)
class Adoption:
    """What the guest confirmed.

    Its wall clock was at most `skew_bound_s` seconds from the host's; proving it took `clock_s` seconds.
    """

    skew_bound_s: float
    clock_tries: int
    clock_s: float


async def adopt(
    agent: AgentClient,
    identity: Identity,
    *,
    env: Mapping[str, str] | None = None,
    unset: Mapping[str, str] | None = None,
    timeout_s: float,
    clock: Callable[[], int] = time.time_ns,
) -> Adoption:
    """The guest has taken on `identity`, `env` and the wall clock `clock` (ns since 1970), each read back and compared.

    Variables that have the values in `unset` are not in its programs' environment, unless they are in `env`.
    Raises `AdoptError`, naming the first item that was not confirmed in time; the machine must then be destroyed.
    """
    end = time.monotonic() + timeout_s
    wanted = identity.items(env or {}, unset=unset)
    try:
        outcomes = await agent.adopt(wanted, timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise AdoptError("agent", f"it did not answer within {timeout_s:g} s") from error
    check_outcomes(wanted, outcomes)
    try:
        proof = await set_clock(agent, timeout_s=timeout_s, end=end, clock=clock)
    except GuestError as error:
        raise AdoptError("clock", error.message, hint=error.hint) from error
    return Adoption(proof.bound_s, proof.tries, proof.took_s)


def check_outcomes(wanted: Sequence[tuple[str, bytes]], outcomes: Sequence[ItemOutcome]) -> None:
    """Raises `AdoptError`, naming the first item that was not confirmed in order, with the evidence it must leave."""
    for index, (item, value) in enumerate(wanted):
        if index >= len(outcomes) or outcomes[index].item != item:
            raise AdoptError(item, "the guest did not confirm it")
        found = outcomes[index]
        if found.outcome != "ok":
            detail = found.evidence[:_SHOWN].decode(errors="replace")
            raise AdoptError(item, f"{found.outcome}{': ' + detail if detail else ''}")
        _check_evidence(item, value, found.evidence)


def _check_evidence(item: str, value: bytes, evidence: bytes) -> None:
    if item == "entropy":
        if not evidence.isdigit():
            raise AdoptError(item, f"the guest shows {evidence[:_SHOWN]!r} for the kernel's entropy count")
    elif item in ("env", "unset-env"):
        if evidence != value.partition(b"=")[0]:
            raise AdoptError(item, f"the guest set {evidence[:_SHOWN]!r}")
    elif evidence != value:
        raise AdoptError(item, f"the guest shows {evidence[:_SHOWN]!r}, not {value!r}")
