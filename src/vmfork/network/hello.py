"""The name that a TLS client asks for: what its first message says, read by OpenSSL and not by a parser of ours."""

from __future__ import annotations

import ssl

# A ClientHello with post-quantum keys has some 2 KiB; session tickets may be many times that.
LARGEST = 64 * 1024
HANDSHAKE = b"\x16"
"""What a client that speaks TLS begins with."""


class ClientHello:
    """Fed with what a client says, it tells the name that the client asks for, and says nothing itself."""

    def __init__(self) -> None:
        self.is_read = False
        """It was read, or is none."""
        self.name: str | None = None
        """The server's name in it, in lower case; `None` where it has none."""
        self.is_sound = False
        """Whether it is a ClientHello at all."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.sni_callback = self._take
        self._incoming = ssl.MemoryBIO()
        self._server = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)
        self._fed = 0

    def feed(self, data: bytes) -> None:
        """More of what the client said."""
        self._incoming.write(data)
        self._fed += len(data)
        try:
            self._server.do_handshake()
        except ssl.SSLWantReadError:
            self.is_read = self._fed > LARGEST
        except (ssl.SSLError, ValueError):
            self.is_read = True

    def _take(self, _server: object, name: str | None, _context: ssl.SSLContext) -> int:
        self.is_sound = True
        self.name = None if name is None else name.lower().removesuffix(".")
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
