"""An issuer of tokens for a registry, over TLS on the loopback (distribution's "token authentication")."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICE, NAME = "vmfork-test", "vmfork-test-issuer"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and localhost that is its own authority, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


class Issuer:
    """`url` is where it is asked. `granted` are the scopes that it gave tokens for; `refused` counts the others.

    One that `is_public` lets everybody read.
    """

    def __init__(self, certificate: Path, key: Path, *, user: str, password: str, is_public: bool = False) -> None:
        self.certificate = certificate
        self.granted: list[str] = []
        self.refused = 0
        self.url = ""
        self._key = key
        self._is_public = is_public
        self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def answer(self, query: dict[str, list[str]], authorization: str) -> bytes | None:
        """A token for what is asked, or `None` for who is not known."""
        scopes = query.get("scope", [])
        reads = self._is_public and not authorization and all(scope.endswith(":pull") for scope in scopes)
        if authorization != self._basic and not reads:
            self.refused += 1
            return None
        self.granted += scopes
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        return json.dumps({"token": self._sign(access)}).encode()

    def _sign(self, access: list[dict[str, object]]) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        body = {
            "iss": NAME, "sub": "me", "aud": SERVICE, "access": access, "jti": secrets.token_hex(8),
            "iat": now, "nbf": now - 600, "exp": now + 3600,
        }  # fmt: skip
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (head, body))
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self._key], input=signed.encode(), check=True, capture_output=True
        )
        return f"{signed}.{_encode(done.stdout)}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def running_issuer(
    certificate: Path, key: Path, *, user: str, password: str, is_public: bool = False
) -> Iterator[Issuer]:
    """It listens."""
    issuer = Issuer(certificate, key, user=user, password=password, is_public=is_public)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = issuer.answer(parse_qs(urlsplit(self.path).query), self.headers.get("Authorization", ""))
            body = token or b"{}"
            self.send_response(401 if token is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    issuer.url = f"https://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
