"""Servers of a static list: their addresses, and by what a caller and a server know each other."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HINT = "write HOST:PORT, such as first.example:7300 or [::1]:7300"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# What proxies and logs leave alone in a header; RFC 6750, b64token.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_MOST_TOKEN = 4096
_PEM = re.compile(r"-----BEGIN [A-Z ]*CERTIFICATE-----[ -~\s]*?-----END [A-Z ]*CERTIFICATE-----", re.ASCII)


def parse_address(text: str, *, field: str = "servers") -> tuple[str, int]:
    """Host and port of `HOST:PORT`; brackets of an IPv6 address are taken off. Raises `ConfigError`."""
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(field, text, f"{text!r} is not the address of a server", hint=_HINT)
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            host = ""
    if not _NAME.fullmatch(host):
        raise ConfigError(field, text, f"{text!r} is not the address of a server", hint=_HINT)
    return host, int(port)


def is_loopback(text: str) -> bool:
    """Whether the host of `HOST:PORT` is this one, by its name alone."""
    host, _ = parse_address(text)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_servers(servers: Sequence[str]) -> tuple[str, ...]:
    """The addresses, each once. Raises `ConfigError` for what is none, for port 0, and for no address at all."""
    for address in servers:
        if parse_address(address)[1] == 0:
            raise ConfigError("servers", address, f"{address!r} has no port", hint=_HINT)
    if not servers:
        raise ConfigError("servers", servers, "no server is named", hint=_HINT)
    return tuple(dict.fromkeys(servers))


def read_servers(given: str) -> tuple[str, ...]:
    """The addresses of `A,B,...`, or of the lines of the file of that name; `#` begins a comment.

    Raises `ConfigError` as `check_servers`, and for a file that cannot be read.
    """
    if "/" not in given and not os.path.isfile(given):  # a long list is no name of a file, and no error
        return check_servers([part.strip() for part in given.split(",") if part.strip()])
    lines = _read("servers", given).splitlines()
    return check_servers([name for line in lines if (name := line.partition("#")[0].strip())])


def read_token(path: str | os.PathLike[str]) -> str:
    """The token in the file. Raises `ConfigError` for one that others may read, and for what is no token."""
    if Path(path).exists() and stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
        raise ConfigError("token_file", str(path), f"others may read {path}", hint=f"chmod 600 {path}")
    return check_token(_read("token_file", path).strip(), field="token_file")


def check_token(token: str, *, field: str = "token") -> str:
    """`token` itself. Raises `ConfigError` for what cannot be sent as one; the error does not tell it."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(token) > _MOST_TOKEN:
        hint = "make one: head -c 32 /dev/urandom | base64"
        raise ConfigError(field, "", "is no token: letters, digits and ._~+/=- make one", hint=hint)
    return token


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """By what callers and servers know each other: certificates, or a token.

    `ca`, `certificate` and `key` are files in PEM: whose certificates are believed (empty: those that gRPC brings), and
    our own. `token` is what callers send. `plaintext` sends all of it unencrypted, wherever the server is; without it
    that is so on the loopback alone, where neither `ca` nor `certificate` is given. Raises `ConfigError` where half of
    a certificate is given, and for a token that is none.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: str = field(default="", repr=False)
    plaintext: bool = False

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            missing = "key" if self.certificate else "certificate"
            raise ConfigError(missing, "", "a certificate and its key go together", hint=f"give {missing} too")
        if self.token:
            check_token(self.token)
        if self.plaintext and (self.ca or self.certificate):
            raise ConfigError(
                "plaintext", True, "nothing is encrypted, so no certificate is looked at", hint="leave one out"
            )

    def encrypts(self, address: str) -> bool:
        """Whether what is said with the server there is encrypted."""
        return bool(self.ca or self.certificate) or not (self.plaintext or is_loopback(address))

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Authority, certificate and key, `None` where none is given.

        Raises `ConfigError` for what cannot be read, and for what is none of these, or not one with the other.
        """
        ca, certificate, key = (
            _read(name, path).encode() if (path := getattr(self, name)) else None
            for name in ("ca", "certificate", "key")
        )
        self._check(ca, certificate, key)
        return ca, certificate, key

    def _check(self, ca: bytes | None, certificate: bytes | None, key: bytes | None) -> None:
        """gRPC says nothing of what is wrong with them. Files are not read again: one may be a pipe."""
        context, hint = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "give files in PEM"
        if ca is not None:
            try:
                context.load_verify_locations(cadata="\n".join(_PEM.findall(ca.decode())))
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError("ca", self.ca, f"{self.ca} has no certificate of an authority", hint=hint) from error
        if certificate is not None and key is not None:
            try:
                with _held(certificate) as certificate_path, _held(key) as key_path:
                    # A password would be asked for at the terminal.
                    context.load_cert_chain(certificate_path, key_path, password="")
            except ssl.SSLError as error:
                both = f"{self.certificate} and {self.key} are no certificate with its key"
                reason = (error.reason or "no PEM").replace("_", " ").lower()
                raise ConfigError("certificate", self.certificate, f"{both}: {reason}", hint=hint) from error


@contextmanager
def _held(content: bytes) -> Iterator[str]:
    """A path where it can be read, by this process alone."""
    fd = os.memfd_create("vmfork-pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _read(field: str, path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(field, str(path), f"{path} cannot be read: {why}", hint="give a file that is here") from error
