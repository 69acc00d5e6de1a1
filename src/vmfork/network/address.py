"""Where on the host a port of a guest is to be had: an address and a port, or a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.config.endpoint import check_socket_path
from vmfork.errors import ConfigError, HostError
from vmfork.host.inherited import close_in_children

if TYPE_CHECKING:
    from pathlib import Path

_BACKLOG = 128
_FORMS = "write PORT, ADDRESS:PORT such as 127.0.0.1:8080 or [::1]:8080, or the absolute path of a socket"


@dataclass(frozen=True, slots=True)
class HostAddress:
    """A Unix socket at `path`, or `port` (0 is a free one) of the address `host`."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, field: str = "host") -> HostAddress:
    """What `8080`, `127.0.0.1:8080`, `[::1]:0`, `localhost:80` or `/path` means. Raises `ConfigError`."""
    if text.startswith(("/", "unix:")):
        return HostAddress(path=check_socket_path(text, field=field))
    host, _, port = text.rpartition(":")
    return HostAddress(_parse_host(host, text, field), parse_port(port, field=field, least=0))


def parse_forward(text: str, *, field: str = "port") -> tuple[HostAddress, int]:
    """Where on the host, and which port of the guest, `[HOST:]GUEST` means. Raises `ConfigError`."""
    host, _, guest = text.rpartition(":")
    return parse_address(host or "0", field=field), parse_port(guest, field=field)


def parse_port(text: str, *, field: str, least: int = 1) -> int:
    """The port in `text`. Raises `ConfigError`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65_535):
        raise ConfigError(field, text, f"{text!r} is not a port from {least} to 65535", hint=_FORMS)
    return int(text)


def _parse_host(host: str, text: str, field: str) -> str:
    if host in ("", "localhost"):
        return "127.0.0.1"
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        socket.inet_pton(socket.AF_INET if bare == host else socket.AF_INET6, bare)
    except (OSError, UnicodeError, ValueError):
        raise ConfigError(field, text, f"{host!r} is not an address", hint=_FORMS) from None
    return bare


def listen(address: HostAddress) -> socket.socket:
    """A socket that listens there, and does not block. The caller closes it. Raises `HostError`."""
    listener = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.path is None:
            # Connections of a listener that has ended may hold the port for a minute.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
        else:
            os.fchmod(listener.fileno(), 0o600)  # before it has a name: nobody else can connect, ever
            _bind_path(listener, address.path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(error, address) from error
    return close_in_children(listener)


def family_of(address: HostAddress) -> socket.AddressFamily:
    """The kind of socket that the address is one of."""
    if address.path is not None:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _bind_path(listener: socket.socket, path: Path) -> None:
    """The socket is at `path`, in place of one that a killed process left there."""
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_over(path):
            raise
        path.unlink()
        listener.bind(str(path))


def _is_left_over(path: Path) -> bool:
    """Whether it is a socket at which nobody listens."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe, suppress(BlockingIOError):
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def bound_address(listener: socket.socket, address: HostAddress) -> HostAddress:
    """The address with the port that the kernel chose."""
    return address if address.path is not None else HostAddress(address.host, listener.getsockname()[1])


def _explain(error: OSError, address: HostAddress) -> HostError:
    hints = {
        errno.EADDRINUSE: "somebody has it: take another, or port 0 for a free one",
        errno.EADDRNOTAVAIL: "that is no address of this host: take one of its own, such as 127.0.0.1",
        errno.EACCES: "ports below 1024 are root's, and a socket needs a folder that is yours",
    }
    hint = hints.get(error.errno or 0, "")
    return HostError(f"cannot listen at {address}: {error.strerror or error}", hint=hint)
