"""Addresses that nothing leads to unless they are named: those that are not of the internet, and the host's own."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

# RFC 6890 and its registry, and what clouds tell their machines secrets at. Said here, since what Python's
# `is_global` holds of some of them changed between its versions. The first that holds an address names it.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the cloud's metadata", ("169.254.169.254/32", "169.254.170.2/32", "fd00:ec2::/32", "100.100.100.200/32")),
    ("the host's loopback", ("127.0.0.0/8", "::1/128")),
    ("of no host", ("0.0.0.0/8", "::/128", "100::/64")),
    ("link-local", ("169.254.0.0/16", "fe80::/10")),
    ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10", "64:ff9b:1::/48")),
    ("shared with other customers of a provider", ("100.64.0.0/10",)),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("reserved", (
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "::/96",
    )),
)  # fmt: skip
_FORBIDDEN = tuple((kind, tuple(ip_network(each) for each in networks)) for kind, networks in _KINDS)
# Where an IPv4 address stands in one of IPv6, by the bits behind it: mapped, translated (NAT64), and 6to4.
_CARRIERS = ((ip_network("::ffff:0:0/96"), 0), (ip_network("64:ff9b::/96"), 0), (ip_network("2002::/16"), 80))


def unwrap(address: Address) -> Address:
    """The IPv4 address that one of IPv6 leads to, where it does; else itself."""
    for network, behind in _CARRIERS:
        if address in network:
            return IPv4Address(int(address) >> behind & 0xFFFF_FFFF)
    return address


def find_kind(address: Address) -> str:
    """Why nothing leads to the address unless it is named: `private`, say. Empty where it is one of the internet's."""
    inner = unwrap(address)
    for kind, networks in _FORBIDDEN:
        if any(inner in network for network in networks):
            return kind
    return "the host's own" if _is_own(inner) else ""


def explain_floor(address: Address) -> str:
    """Why the address is refused unless it is named, with what it is. Empty where it is one of the internet's."""
    kind = find_kind(address)
    return f"{address} is {kind}: name the address itself to allow it" if kind else ""


def lies_below(network: Network) -> bool:
    """Whether all of its addresses are of one kind of these: only then does it name them."""
    ranges = [each for _, networks in _FORBIDDEN for each in networks]
    return any(network.version == each.version and network.subnet_of(each) for each in ranges)  # type: ignore[arg-type]


def _is_own(address: Address) -> bool:
    """The kernel would send from the very address: a service of this host behind no firewall. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return ip_address(probe.getsockname()[0].partition("%")[0]) == address
    return False
