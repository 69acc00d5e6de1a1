"""Where a request of HTTP is to go, by its target alone: what else it says of that is not believed."""

from __future__ import annotations

import re

from vmfork.network.hostname import find_name
from vmfork.network.pattern import find_address

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\\]+)(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(r"(?i:http)://([^/?#]*)((?:/[^#]*|\?[^#]*)?)(?:#.*)?")


def parse_authority(text: str, *, usual_port: int | None = None) -> tuple[str, int] | None:
    """Host, a name in lower case or an address, and port of `HOST:PORT`. `None` where it is none."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None or (parts[2] is None and usual_port is None):
        return None
    port = int(parts[2] or usual_port or 0)
    host = find_host(parts[1])
    return (host, port) if host and 1 <= port <= 65_535 else None


def parse_absolute(text: str) -> tuple[str, int, str] | None:
    """Host, port, and path with query, of `http://HOST[:PORT]/PATH`. `None` where it is none."""
    parts = _ABSOLUTE.fullmatch(text)
    found = None if parts is None else parse_authority(parts[1], usual_port=80)
    if parts is None or found is None:
        return None
    return *found, parts[2] if parts[2].startswith("/") else f"/{parts[2]}"


def find_host(text: str) -> str | None:
    """The name in lower case, or the address without brackets. `None` for what is neither."""
    bare = text[1:-1] if text.startswith("[") else text
    address = find_address(bare)
    if address is None:
        return None if text.startswith("[") else find_name(text)
    return str(address) if text.startswith("[") == (address.version == 6) else None


def write_authority(host: str, port: int) -> str:
    """Host and port as a header of HTTP has them; 80 is left out."""
    name = f"[{host}]" if ":" in host else host
    return name if port == 80 else f"{name}:{port}"
