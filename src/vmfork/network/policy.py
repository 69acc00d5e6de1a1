"""What a machine may reach, as a value: nothing, all of the internet, or what a list names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from vmfork.errors import ConfigError
from vmfork.network.floor import explain_floor, unwrap
from vmfork.network.pattern import Pattern, find_address, parse_pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.network.floor import Address

_HINT = 'give "none", "all", or vmfork.Allow("api.example.org", "*.example.com:443")'


@dataclass(frozen=True, slots=True, init=False)
class Allow:
    """A list of what a machine may reach.

    An entry is a name (`api.example.org`), the names below one (`*.example.com`), an address or a network of addresses;
    `:PORT` behind it is the only port, and without one 80 and 443 are meant. A name that leads to an address which is
    private, of the host, or otherwise not of the internet is refused unless an entry names that address too. With
    `log_only` all names are let through, and the log says which of them the list has not. Raises `ConfigError` for what
    is no entry, and for no entries without `log_only`.
    """

    entries: tuple[str, ...]
    """As they were given."""
    log_only: bool
    """Whether what the list has not is let through, and told in the log."""
    patterns: tuple[Pattern, ...] = field(repr=False, compare=False)

    def __init__(self, *entries: str, log_only: bool = False) -> None:
        if not entries and not log_only:
            raise ConfigError("network", entries, "the list allows nothing", hint='that is network="none"')
        if not isinstance(log_only, bool):
            raise ConfigError("log_only", log_only, f"{log_only!r} is not True or False")
        patterns = tuple(parse_pattern(entry, field="network") for entry in entries)
        object.__setattr__(self, "entries", tuple(pattern.text for pattern in patterns))
        object.__setattr__(self, "log_only", log_only)
        object.__setattr__(self, "patterns", patterns)


NetworkPolicy: TypeAlias = Literal["none", "all"] | Allow


class Verdict(NamedTuple):
    """Whether it may be reached, and why: the entry that names it, or what is against it."""

    allowed: bool
    why: str


def check_policy(policy: object) -> NetworkPolicy:
    """`policy` itself. Raises `ConfigError` for what is none."""
    if policy == "none":
        return "none"
    if policy == "all":
        return "all"
    if isinstance(policy, Allow):
        return policy
    raise ConfigError("network", policy, f"{policy!r} is no policy for a network", hint=_HINT)


def judge_host(policy: NetworkPolicy, host: str, port: int) -> Verdict:
    """Whether the name may be looked up, or the address reached. A name that may not is never looked up."""
    if (address := find_address(host)) is not None:
        return _judge_literal(policy, unwrap(address), port)
    if not isinstance(policy, Allow):
        return Verdict(policy == "all", f"network is {policy}")
    return _choose(policy, find_entries(policy, host), host, port)


def find_entries(policy: NetworkPolicy, name: str) -> Sequence[Pattern]:
    """The entries that name this host, at whatever port."""
    patterns = policy.patterns if isinstance(policy, Allow) else ()
    return [pattern for pattern in patterns if pattern.name and pattern.names_host(name)]


def judge_address(policy: NetworkPolicy, address: Address, port: int) -> Verdict:
    """Whether an address to which an allowed name led may be connected to."""
    inner = unwrap(address)
    if not (reason := explain_floor(inner)):
        return Verdict(allowed=True, why="")
    for pattern in policy.patterns if isinstance(policy, Allow) else ():
        if pattern.lifts_floor(inner) and port in pattern.ports:
            return Verdict(allowed=True, why=pattern.text)
    return Verdict(allowed=False, why=reason)


def _judge_literal(policy: NetworkPolicy, address: Address, port: int) -> Verdict:
    ground = judge_address(policy, address, port)
    if not ground.allowed or ground.why:
        return ground
    if not isinstance(policy, Allow):
        return Verdict(policy == "all", f"network is {policy}")
    return _choose(policy, [pattern for pattern in policy.patterns if pattern.holds(address)], str(address), port)


def _choose(policy: Allow, named: Sequence[Pattern], host: str, port: int) -> Verdict:
    for pattern in named:
        if port in pattern.ports:
            return Verdict(allowed=True, why=pattern.text)
    if named:
        ports = " and ".join(str(each) for each in sorted({each for pattern in named for each in pattern.ports}))
        return Verdict(policy.log_only, f"port {port} of {host} is not in the list, which has {ports}")
    return Verdict(policy.log_only, f"{host} is not in the list")
