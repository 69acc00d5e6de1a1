"""Where a cache server listens, and where its metrics are read: local addresses only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from vmfork.config.places import Places

# unix(7): sun_path holds 108 bytes with the closing NUL.
PATH_LIMIT = 107
_SCHEME = "unix:"
NO_METRICS = "none"
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


def find_endpoint(endpoint: str, places: Places) -> Path:
    """The Unix socket of the cache server: the one configured, else `cache.sock` in the runtime folder.

    Raises `ConfigError` when the path is not absolute, or too long for a Unix socket.
    """
    if endpoint:
        return check_socket_path(endpoint, field="factory.endpoint")
    path = str(places.runtime / "cache.sock")
    return check_socket_path(path, field="factory.endpoint", hint="name a shorter one: [factory] endpoint")


def check_socket_path(text: str, *, field: str, hint: str = "") -> Path:
    """The path in `text`, with or without `unix:` before it."""
    if not isinstance(text, str) or "\0" in text or "\n" in text:
        raise ConfigError(field, text, f"{text!r} is not the path of a Unix socket", hint="write /path/NAME.sock")
    path = text.removeprefix(_SCHEME).removeprefix("//")
    if not path.startswith("/") or path.endswith("/"):
        raise ConfigError(field, text, f"{text!r} is not an absolute path of a socket", hint="write /path/NAME.sock")
    length = len(os.fsencode(path))
    if length > PATH_LIMIT:
        reason = f"the path of a Unix socket has at most {PATH_LIMIT} bytes, this one {length}: {path}"
        raise ConfigError(field, text, reason, hint=hint or "use a shorter path")
    return Path(path)


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """A Unix socket at `path`, or a loopback `host` and `port` (0 takes a free one)."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"{_SCHEME}{self.path}" if self.path else f"{self.host}:{self.port}"


def find_metrics(metrics: str, endpoint: Path) -> MetricsAddress | None:
    """Where the server at `endpoint` serves its metrics: where it was told to, else on a Unix socket beside it.

    `None` for `none`, and where the path of such a socket would be too long.
    """
    if metrics == NO_METRICS:
        return None
    if metrics:
        return parse_metrics_address(metrics)
    beside = endpoint.with_name(endpoint.name + ".metrics")
    return MetricsAddress(path=beside) if len(os.fsencode(beside)) <= PATH_LIMIT else None


def parse_metrics_address(text: str, *, field: str = "factory.metrics") -> MetricsAddress:
    """What `unix:/path`, `127.0.0.1:9100`, `[::1]:9100` or `localhost:9100` means.

    Raises `ConfigError` for anything else.
    """
    if isinstance(text, str) and text.startswith((_SCHEME, "/")):
        return MetricsAddress(path=check_socket_path(text, field=field))
    hint = "write unix:/path, or a loopback address such as 127.0.0.1:9100"
    host, colon, port = str(text).rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(field, text, f"{text!r} is no address for metrics", hint=hint)
    if host not in _LOOPBACK:
        raise ConfigError(field, text, f"{host!r} is not the loopback, and metrics go no further", hint=hint)
    return MetricsAddress(host="127.0.0.1" if host == "localhost" else host.strip("[]"), port=int(port))
