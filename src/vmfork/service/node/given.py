"""What a caller from elsewhere may ask of a node: machines, and nothing else of its host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmfork.cluster.node import Node
from vmfork.cluster.terms import Order
from vmfork.errors import ConfigError
from vmfork.network.floor import find_kind
from vmfork.network.policy import Allow

if TYPE_CHECKING:
    from collections.abc import Sequence

# The options that `ClusterVM` and `Cluster` send. Others of the same methods name descriptors, or listeners, of a host.
_PROGRAM = {"env", "cwd", "user", "clean_env", "limits", "encoding", "errors", "timeout_s", "grace_s"}
_FORK = {
    "env", "files", "cpus", "memory_mib", "ttl_s", "idle_ttl_s", "network", "card", "disk", "allow_guest_fork",
    "timeout_s",
}  # fmt: skip
_OPTIONS = {
    "exec": _PROGRAM | {"input", "max_output"},
    "stream_exec": _PROGRAM,
    "run_code": {"context", "restart", "made_in", "max_output", "timeout_s", "grace_s"},
    "image_argv": {"timeout_s"},
    "read_file": {"max_bytes", "timeout_s"},
    "write_file": {"mode", "parents", "timeout_s"},
    "list_dir": {"recursive", "glob", "max_bytes", "timeout_s"},
    "remove": {"recursive", "timeout_s"},
    "make_dir": {"mode", "parents"},
    "chown": {"user", "group"},
    "put": {"timeout_s"},
    "get": {"max_bytes", "timeout_s"},
    "resume": {"timeout_s"},
    "ping": {"timeout_s"},
    "fork_vm": _FORK | {"programs", "hooks", "partial", "hook_timeout_s"},
    "fork": _FORK,
}  # fmt: skip
# What leads nowhere; others reach networks of this host past any list.
_CARDS = ("none", "restricted")


def check_call(verb: str, arguments: Sequence[Any]) -> None:
    """Raises `ConfigError` for a call that is none of a node's, and for what none from elsewhere may ask."""
    if verb not in Node.CALLS | Node.STREAMS:
        raise ConfigError("verb", verb, f"a node does not know {verb!r}", hint="is it another vmfork?")
    options: Any = {}
    if verb == "fork":
        (order,) = arguments
        if not isinstance(order, Order):
            raise ConfigError("order", order, "is no order for a machine")
        options = order.options
    elif verb in _OPTIONS:
        options = arguments[-1]
    if verb in ("fork", "fork_vm"):
        if (card := options.get("card", "none")) not in _CARDS:
            reason = "a card that reaches what this host reaches is not given to callers from elsewhere"
            raise ConfigError("card", card, reason, hint="take restricted, or network=vmfork.Allow(...)")
        _check_network(options.get("network", "none"))
    unknown = {*options} - _OPTIONS.get(verb, set())
    if unknown:
        raise ConfigError(min(unknown), "", f"callers from elsewhere cannot say that of {verb}")


def _check_network(policy: object) -> None:
    """A list that names addresses of ours, or of our networks, is not for callers from elsewhere to write."""
    for pattern in policy.patterns if isinstance(policy, Allow) else ():
        if pattern.network is None:
            continue
        address = pattern.network.network_address
        if pattern.lifts_floor(address) and (kind := find_kind(address)):
            reason = f"{pattern.text} is {kind}, which callers from elsewhere cannot open"
            raise ConfigError("network", pattern.text, reason, hint="name hosts of the internet")
