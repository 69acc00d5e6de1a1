"""What an allow-list names: one host, the hosts below a name, or addresses; and at which ports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.network.floor import lies_below
from vmfork.network.hostname import find_name, is_localhost

if TYPE_CHECKING:
    from vmfork.network.floor import Address, Network

# Where none is said: HTTP and HTTPS.
USUAL_PORTS = frozenset({80, 443})
_FORMS = (
    "write a name (api.example.org), the names below one (*.example.com), an address or a network (10.1.0.7, "
    "10.1.0.0/24, [2001:db8::1]), each with a port if you like (db.example.org:5432); 80 and 443 are meant without one"
)
# One label, or a country's and what its registry has below it: co.uk, com.au, ac.jp.
_PUBLIC = re.compile(r"[^.]+|(?:ac|co|com|edu|gob|gov|go|mil|ne|net|or|org)\.[a-z]{2}")
_PARTS = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*|[^\[\]]*:[^\[\]]*:[^\[\]]*)(?::(?P<port>[^:\[\]]*))?")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of an allow-list. `name` and, where `is_below`, `*.` before it; or the addresses of `network`."""

    text: str
    ports: frozenset[int]
    name: str = ""
    is_below: bool = False
    network: Network | None = None

    def names_host(self, name: str) -> bool:
        """Whether the name is the one, or below it."""
        return name.endswith(f".{self.name}") if self.is_below else name == self.name

    def holds(self, address: Address) -> bool:
        """Whether the address is one of the network."""
        return self.network is not None and address in self.network

    def lifts_floor(self, address: Address) -> bool:
        """Whether it names the address though that is one that nothing leads to by itself.

        A network that is larger than what it lies in, 0.0.0.0/0 say, names none of these.
        """
        network = self.network
        return network is not None and address in network and (network.num_addresses == 1 or lies_below(network))

    @property
    def own_port(self) -> int | None:
        """The port of an entry that is one host at one port: a guest can find that at an address of its own."""
        is_one = bool(self.name) and not self.is_below and not is_localhost(self.name) and self.ports is not USUAL_PORTS
        return next(iter(self.ports)) if is_one else None


def parse_pattern(text: object, *, field: str) -> Pattern:
    """What the entry names. Raises `ConfigError` for what is none, with the forms there are."""
    if not isinstance(text, str):
        raise ConfigError(field, text, f"{text!r} is not text", hint=_FORMS)
    bare = text.strip()
    if "://" in bare or "%" in bare or (parts := _PARTS.fullmatch(bare)) is None or not parts["host"]:
        raise _refuse(field, text, "is no name of a host, and no address")
    ports = USUAL_PORTS if parts["port"] is None else frozenset({_parse_port(parts["port"], text, field)})
    host = parts["host"]
    if (network := _find_network(host, text, field)) is not None:
        return Pattern(text=bare, ports=ports, network=network)
    is_below = host.startswith("*.")
    name = find_name(host.removeprefix("*."))
    if "*" in host.removeprefix("*."):
        raise _refuse(field, text, "has a * that is not *. at its beginning")
    if name is None:
        raise _refuse(field, text, "is no name of a host, and no address")
    if is_below and _PUBLIC.fullmatch(name):
        raise _refuse(field, text, f"names all hosts below {name}, which are anybody's")
    return Pattern(text=bare, ports=ports, name=name, is_below=is_below)


def _parse_port(port: str, text: str, field: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise _refuse(field, text, f"has {port!r} for a port, and there are those from 1 to 65535")
    return int(port)


def _find_network(host: str, text: str, field: str) -> Network | None:
    bare = host[1:-1] if host.startswith("[") else host
    try:
        network = ip_network(bare)
    except ValueError as error:
        if "/" in bare or host.startswith("[") or ":" in bare:
            raise _refuse(field, text, f"is no network of addresses: {error}") from None
        return None
    if host.startswith("[") and network.version == 4:
        raise _refuse(field, text, "has brackets, which are for IPv6")
    return network


def _refuse(field: str, text: object, reason: str) -> ConfigError:
    return ConfigError(field, text, f"{text!r} {reason}", hint=_FORMS)


def find_address(text: str) -> Address | None:
    """The address in `text`, without brackets. `None` where it is a name, or an address with a zone."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None
