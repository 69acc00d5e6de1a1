"""What a registry answers leads our login, our content and our time nowhere that nobody meant: real servers answer."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import ssl
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.children import read_pipe, wait_gone
from tests.issuer import make_certificate
from vmfork.errors import Closed, HostError
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
    listening.handle_error = lambda *_: None  # whoever asked may have gone
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    server = Server(f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.server_address[1]}", answer)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
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


UPLOADS = "/v2/team/app/blobs/uploads/"


def taking(where: Callable[[], str]) -> Callable[[Asked], Answer]:
    """A registry that knows `me` alone, has nothing, and sends uploads to what `where` says."""

    def answer(asked: Asked) -> Answer:
        if asked.authorization != basic("me"):
            return Answer(401, BASIC)
        if asked.method == "POST":
            return Answer(202, {"Location": where()})
        return Answer(201 if asked.method == "PUT" else 404)

    return answer


@pytest.mark.parametrize("status", [201, 401])
def test_where_an_upload_goes_elsewhere_nobody_there_is_told_who_we_are(tls, log_in, status) -> None:
    with (
        serving(lambda _: Answer(status, BASIC), tls) as elsewhere,
        serving(taking(lambda: f"{elsewhere.url}/there?key=1"), tls) as server,
        open_at(server) as repository,
    ):
        log_in(server.host)
        if status == 201:
            repository.put(DESCRIBED, DATA)
        else:
            with pytest.raises(HostError, match="401"):
                repository.put(DESCRIBED, DATA)
        expected = Asked("PUT", f"/there?key=1&digest={DESCRIBED.digest}".replace(":", "%3A"), None, DATA)
        assert [replace(each, path=each.path.replace(":", "%3A")) for each in elsewhere.asked] == [expected]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_an_upload_goes_nowhere_by_plain_http_where_the_registry_speaks_tls(tls, log_in, name) -> None:
    with (
        serving(lambda _: Answer(201)) as elsewhere,
        serving(taking(lambda: f"{elsewhere.url.replace('127.0.0.1', name)}/there"), tls) as server,
        open_at(server) as repository,
    ):
        log_in(server.host)
        with pytest.raises(HostError, match=f"leads to http://{name}") as told:
            repository.put(DESCRIBED, DATA)
        assert told.value.hint
        assert elsewhere.asked == []


def test_a_registry_that_does_not_know_of_its_tls_is_spoken_to_by_it(tls, log_in) -> None:
    with serving(taking(lambda: f"HTTP://{server.host}{UPLOADS}1"), tls) as server, open_at(server) as repository:
        log_in(server.host)
        repository.put(DESCRIBED, DATA)
        assert (server.asked[-1].method, server.asked[-1].body) == ("PUT", DATA)
        assert server.asked[-1].authorization == basic("me")


def test_a_redirect_leads_nowhere_by_plain_http_where_the_registry_speaks_tls(tls) -> None:
    with (
        serving(lambda _: Answer(200, {}, DATA)) as elsewhere,
        serving(lambda _: Answer(307, {"Location": f"{elsewhere.url}/there"}), tls) as server,
        open_at(server) as repository,
    ):
        with pytest.raises(HostError, match="leads to http://"):
            repository.read(DESCRIBED)
        assert elsewhere.asked == []


def test_whom_a_redirect_leads_to_cannot_ask_for_our_login(tls, log_in) -> None:
    with (
        serving(lambda _: Answer(401, BASIC), tls) as elsewhere,
        serving(lambda _: Answer(307, {"Location": f"{elsewhere.url}/there"}), tls) as server,
        open_at(server) as repository,
    ):
        log_in(server.host)
        with pytest.raises(HostError, match="401"):
            repository.read(DESCRIBED)
        assert server.told == elsewhere.told == {None}


@pytest.mark.parametrize("way", ["at once", "by a redirect"])
def test_a_password_goes_to_no_issuer_by_plain_http_where_the_registry_speaks_tls(tls, log_in, way) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(307, {"Location": f"{issuer.url}/token"})
        realm = f"{issuer.url if way == 'at once' else server.url}/token"
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="test"'})

    with (
        serving(lambda _: Answer(200, {}, b'{"token": "it"}')) as issuer,
        serving(answer, tls) as server,
        open_at(server) as repository,
    ):
        log_in(server.host)
        with pytest.raises(HostError, match="leads to http://"):
            repository.read(DESCRIBED)
        assert issuer.asked == []


def test_one_on_this_host_that_speaks_no_tls_leads_to_no_other_host_without_it(log_in) -> None:
    """Whoever allows plain HTTP allows it on the whole way. The issuer's host is another by its name alone."""

    def answer(asked: Asked) -> Answer:
        if asked.authorization == "Bearer it":
            return Answer(200, {}, DATA)
        realm = f"{issuer.url.replace('127.0.0.1', '0.0.0.0')}/token"
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="test"'})

    with serving(lambda _: Answer(200, {}, b'{"token": "it"}')) as issuer, serving(answer) as server:
        log_in(server.host)
        with open_at(server) as repository, pytest.raises(HostError, match=r"leads to http://0\.0\.0\.0"):
            repository.read(DESCRIBED)
        assert issuer.asked == []
        with open_at(server, plain_http=True) as repository:
            assert repository.read(DESCRIBED) == DATA
        assert issuer.told == {basic("me")}


@pytest.mark.parametrize("where", ["https://[/", "https://127.0.0.1:99999/"])
def test_what_leads_nowhere_is_told_as_that(where) -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(307, {"Location": where})

    with serving(answer) as server, open_at(server) as repository:
        with pytest.raises(HostError, match="leads to 'https"):
            repository.read(DESCRIBED)
        server.answer = lambda asked: Answer(202 if asked.method == "POST" else 404, {"Location": where})
        with pytest.raises(HostError, match="leads to 'https"):
            repository.put(DESCRIBED, DATA)


def by_date(wait_s: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=wait_s), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait_s", ["0", -5], ids=["seconds", "date"])
def test_a_registry_that_asks_us_to_wait_a_little_is_asked_again(status, wait_s) -> None:
    """An upload as well: nothing was begun."""

    def answer(asked: Asked) -> Answer:
        if server.asked.count(asked) == 1:
            return Answer(status, {"Retry-After": wait_s if wait_s == "0" else by_date(wait_s)})
        found = {"POST": Answer(202, {"Location": f"{UPLOADS}1"}), "PUT": Answer(201)}
        return found.get(asked.method, Answer(404))

    with serving(answer) as server, open_at(server) as repository:
        repository.put(DESCRIBED, DATA)
        methods = [each.method for each in server.asked if each.method != "GET"]
        assert methods == ["HEAD", "HEAD", "POST", "POST", "PUT", "PUT"]


@pytest.mark.parametrize("wait_s", ["3600", "9" * 400, 3600], ids=["seconds", "ages", "date"])
@pytest.mark.parametrize("at", ["the registry", "its issuer"])
def test_one_that_asks_us_to_wait_for_long_is_told_with_its_words(wait_s, at) -> None:
    def answer(asked: Asked) -> Answer:
        if at == "its issuer" and not asked.path.startswith("/token"):
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="test"'})
        said = wait_s if isinstance(wait_s, str) else by_date(wait_s)
        return Answer(429, {"Retry-After": said}, b"you have pulled enough" + b"." * 9000)

    with serving(answer) as server, open_at(server) as repository:
        with pytest.raises(HostError, match=r"429 Too Many Requests, and asks us to wait for (3\d{3}|inf) s") as told:
            repository.read(DESCRIBED)
        assert server.host in str(told.value)
        assert told.value.log.startswith("you have pulled enough")
        assert len(told.value.log) == 2000
        assert told.value.hint


def test_one_that_goes_on_asking_us_to_wait_is_left() -> None:
    with serving(lambda _: Answer(503, {"Retry-After": "0"}, b"later")) as server, open_at(server) as repository:
        with pytest.raises(HostError, match="503") as told:
            repository.read(DESCRIBED)
        assert told.value.log == "later"
        assert len(server.asked) == 4


def test_our_patience_is_one_for_all_of_its_answers() -> None:
    with serving(lambda _: Answer(503, {"Retry-After": waits.pop(0)})) as server, open_at(server) as repository:
        waits = ["1", "59.5", "0"]  # the second is in no words of the standard
        with pytest.raises(HostError, match=r"answered GET .* with 503"):
            repository.read(DESCRIBED)
        waits = ["1", "60"]
        with pytest.raises(HostError, match="asks us to wait for 60 s"):
            repository.read(DESCRIBED)


def test_whoever_waits_for_a_registry_to_be_asked_again_is_woken_when_all_is_closed() -> None:
    asked = threading.Event()

    def answer(_: Asked) -> Answer:
        asked.set()
        return Answer(503, {"Retry-After": "60"})

    with serving(answer) as server, ThreadPoolExecutor(1) as pool:
        repository = open_at(server)
        reading = pool.submit(repository.read, DESCRIBED)
        assert asked.wait(10)
        wait_for_end_of(reading, repository)
        assert len(server.asked) == 1


def wait_for_end_of(reading: Future[bytes], repository: Repository) -> None:
    """It waits, is given up, and has ended at once."""
    with pytest.raises(TimeoutError):
        reading.result(timeout=0.5)
    repository.close()
    with pytest.raises((HostError, Closed)):
        reading.result(timeout=10)


def test_a_helper_that_a_request_waits_for_is_ended_when_all_is_closed(home, monkeypatch) -> None:
    pipe = home / "pid"
    os.mkfifo(pipe)
    program = home / "bin" / "docker-credential-slow"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ >{pipe}\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (home / ".docker" / "config.json").write_text('{"credsStore": "slow"}')
    with serving(lambda _: Answer(401, BASIC)) as server, ThreadPoolExecutor(1) as pool:
        repository = open_at(server)
        reading = pool.submit(repository.read, DESCRIBED)
        helper = os.pidfd_open(int(read_pipe(pipe)))
        wait_for_end_of(reading, repository)
        assert wait_gone(helper)
        os.close(helper)


class Full(io.BytesIO):
    """A file whose disk is full."""

    def write(self, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_fault_of_the_registry() -> None:
    with serving(lambda _: Answer(200, {}, DATA)) as server, open_at(server) as repository:
        with pytest.raises(OSError, match="No space left") as told:
            repository.download(DESCRIBED, Full(), lambda _size: None)
        assert told.value.errno == errno.ENOSPC
        assert len(server.asked) == 1


def test_a_disk_that_fills_up_while_a_layer_comes_is_not_filled_again() -> None:
    """Behind its beginning, too: that was taken for a line that broke, and fetched once more."""

    class Filling(Full):
        def write(self, data: object) -> int:
            return io.BytesIO.write(self, data) if not self.tell() else super().write(data)

    data = os.urandom(3 << 20)
    described = Descriptor.of(data, "application/octet-stream")
    with serving(lambda _: Answer(200, {}, data)) as server, open_at(server) as repository:
        with pytest.raises(OSError, match="No space left"):
            repository.download(described, Filling(), lambda _size: None)
        assert len(server.asked) == 1


def test_a_registry_that_forbids_it_is_quoted_and_our_login_is_kept(log_in) -> None:
    """What is asked once more without a login is answered to nobody, and by other words."""

    def answer(asked: Asked) -> Answer:
        if asked.authorization != basic("me"):
            return Answer(401, BASIC, b"who are you")
        return Answer(403, {}, b"the quota of team is used up" + b"." * 9000) if asked.path == BLOB else Answer(404)

    with serving(answer) as server, open_at(server) as repository:
        log_in(server.host)
        for _ in range(2):
            with pytest.raises(HostError, match="403") as told:
                repository.read(DESCRIBED)
            assert told.value.log.startswith("the quota of team is used up")
            assert len(told.value.log) == 2000
            assert told.value.hint
        assert [each.authorization for each in server.asked] == [None, basic("me"), basic("me")]


def test_a_registry_that_forbids_us_and_asks_who_we_are_is_told(log_in) -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(200, {}, DATA) if asked.authorization == basic("me") else Answer(403, BASIC)

    with serving(answer) as server, open_at(server) as repository:
        log_in(server.host)
        assert repository.read(DESCRIBED) == DATA


def test_a_login_that_is_refused_is_told_with_the_registrys_words(log_in) -> None:
    with serving(lambda _: Answer(401, BASIC, b"your account has expired")) as server, open_at(server) as repository:
        log_in(server.host)
        with pytest.raises(HostError, match="401") as told:
            repository.read(DESCRIBED)
        assert told.value.log == "your account has expired"
        assert "docker login" in told.value.hint


def test_a_registry_that_asks_nobody_for_a_password_is_told_as_that(monkeypatch) -> None:
    """Nor is it told what `oras` finds in the environment, which is of no registry."""
    monkeypatch.setenv("ORAS_USER", "other")
    monkeypatch.setenv("ORAS_PASS", "secret")
    with serving(lambda _: Answer(401, BASIC, b"who are you")) as server, open_at(server) as repository:
        with pytest.raises(HostError, match="asks for a login, and none is known") as told:
            repository.read(DESCRIBED)
        assert f"docker login {server.host}" in told.value.hint
        assert told.value.log == "who are you"
        assert server.told == {None}


@pytest.mark.parametrize("challenge", ["Negotiate", 'Bearer service="test"'])
def test_a_registry_that_asks_in_no_way_that_we_know_is_told_as_that(log_in, challenge) -> None:
    with serving(lambda _: Answer(401, {"WWW-Authenticate": challenge})) as server, open_at(server) as repository:
        log_in(server.host)
        with pytest.raises(HostError, match="asks who we are by"):
            repository.read(DESCRIBED)
