"""What a registry answers leads our login, our content and our time nowhere that nobody meant: real servers answer."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.issuer import make_certificate
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.reference import Reference
from vmfork.oci.registry import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = b"content"
DESCRIBED = Descriptor.of(DATA, "application/octet-stream")
BLOB = f"/v2/team/app/blobs/{DESCRIBED.digest}"
BASIC = {"WWW-Authenticate": 'Basic realm="test"'}


def basic(user: str, password: str = "secret") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    authorization: str | None
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Server:
    """`asked` is all that it was asked; `answer` is called for each."""

    url: str
    answer: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    @property
    def told(self) -> set[str | None]:
        """Who was said to ask."""
        return {each.authorization for each in self.asked}


@contextmanager
def serving(answer: Callable[[Asked], Answer], tls: tuple[Path, Path] | None = None) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, self.headers.get("Authorization"), body)
            server.asked.append(asked)
            said = server.answer(asked)
            self.send_response(said.status)
            for name, value in ({"Content-Length": str(len(said.body))} | said.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    server = Server(f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.server_address[1]}", answer)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@pytest.fixture
def tls(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A certificate of this host that is trusted, and its key."""
    files = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files[0]))
    return files


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Of a user who has no login."""
    for name in ("DOCKER_CONFIG", "NETRC", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    return tmp_path


@pytest.fixture
def log_in(home) -> Callable[[str], None]:
    def log_in(host: str, user: str = "me") -> None:
        said = {"auths": {host: {"auth": basic(user).partition(" ")[2]}}}
        (home / ".docker" / "config.json").write_text(json.dumps(said))

    return log_in


def open_at(server: Server, **how: bool) -> Repository:
    return Repository(Reference.parse(f"{server.host}/team/app:1"), **how)


def test_a_login_of_netrc_is_nobodys(home, tls, log_in) -> None:
    """Neither in the place of the one that Docker's file has, nor to whom a redirect leads."""
    (home / ".netrc").write_text("machine 127.0.0.1 login other password wrong\ndefault login any password wrong\n")

    def answer(asked: Asked) -> Answer:
        if asked.authorization != basic("me"):
            return Answer(401, BASIC)
        return Answer(307, {"Location": f"{elsewhere.url.replace('127.0.0.1', 'localhost')}/there"})

    with serving(lambda _: Answer(200, {}, DATA), tls) as elsewhere, serving(answer, tls) as server:
        log_in(server.host)
        with open_at(server) as repository:
            assert repository.read(DESCRIBED) == DATA
        assert server.told == {None, basic("me")}
        assert elsewhere.told == {None}


def test_a_token_is_not_overridden_by_netrc(home, tls) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login other password wrong\n")

    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(200, {}, b'{"token": "it"}')
        if asked.authorization != "Bearer it":
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="test"'})
        return Answer(200, {}, DATA)

    with serving(answer, tls) as server, open_at(server) as repository:
        assert repository.read(DESCRIBED) == DATA
        assert server.told == {None, "Bearer it"}
