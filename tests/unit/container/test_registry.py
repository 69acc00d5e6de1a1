"""Images come from a registry as its users run it: with TLS, with a password, by a line that breaks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.images import LayoutWriter, Member, make_layer, put_image
from tests.issuer import make_certificate, running_issuer
from tests.registry import (
    HTPASSWD,
    PASSWORD,
    USER,
    Registry,
    give_up_behind,
    keep_repositories,
    lines_to,
    running_registry,
)
from tests.unit.container.conftest import CONFIG, LAYERS, files_of
from vmfork.container.limits import ImportLimits
from vmfork.errors import ArtifactError, Closed, HostError, ImageNotFound
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.late import import_late
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.manifest import Manifest
from vmfork.oci.reference import Reference
from vmfork.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.oci.registry import Repository

pytestmark = pytest.mark.needs("docker-registry", "oras")

# Bytes: more than a configuration has.
_LAYER = 1 << 16
_MEET_LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def credentials(tmp_path, monkeypatch):
    """The file of credentials of a user who has none yet."""
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder / "config.json"


@pytest.fixture
def layout(tmp_path) -> LayoutWriter:
    written = LayoutWriter(tmp_path / "in")
    written.add_image([make_layer(members) for members in LAYERS], config=CONFIG)
    return written


def nothing_is_left(store) -> bool:
    with pytest.raises(ImageNotFound):
        store.open("it")
    return not [path for path in store.folder.iterdir() if path.name.startswith(".staging")]


def log_in(credentials, host: str) -> None:
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    credentials.write_text(json.dumps({"auths": {host: {"auth": token}}}))


async def test_with_a_password_from_the_file_of_credentials(bring, store, layout, credentials, tmp_path):
    with running_registry(tmp_path / "closed", htpasswd=HTPASSWD) as registry:
        reference = f"{registry.host}/team/app:1"
        with pytest.raises(HostError) as told:
            await bring(reference)
        assert "docker login" in told.value.hint
        assert nothing_is_left(store)
        log_in(credentials, registry.host)
        put_image(layout, reference)
        assert files_of(await bring(reference))["etc/a"] == b"new"
        log_in(credentials, "registry.example")
        with pytest.raises(HostError):
            await bring(reference)


async def test_by_tls_where_the_authority_is_known(bring, store, layout, tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path)
    with running_registry(tmp_path / "tls", tls=(certificate, key)) as registry:
        reference = f"{registry.host}/team/app:1"
        with pytest.raises(HostError, match="not to be trusted"):
            await bring(reference)
        assert nothing_is_left(store)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        put_image(layout, reference)
        assert files_of(await bring(reference))["etc/a"] == b"new"


async def test_by_a_token_where_the_registry_sends_us_to_an_issuer(
    bring, store, layout, credentials, tmp_path, monkeypatch
):
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with (
        running_issuer(certificate, key, user=USER, password=PASSWORD) as issuer,
        running_registry(tmp_path / "tokens", tls=(certificate, key), issuer=issuer) as registry,
    ):
        reference = f"{registry.host}/team/app:1"
        with pytest.raises(HostError) as told:
            await bring(reference)
        assert "docker login" in told.value.hint
        assert (bool(issuer.refused), issuer.granted) == (True, [])
        assert nothing_is_left(store)
        log_in(credentials, registry.host)
        put_image(layout, reference)
        issuer.granted.clear()
        assert files_of(await bring(reference))["etc/a"] == b"new"
        # Whoever only reads asks for no more.
        assert {*issuer.granted} == {"repository:team/app:pull"}


@pytest.fixture
def repositories(monkeypatch):
    return keep_repositories(monkeypatch)


async def test_no_connection_is_left(bring, store, layout, repositories, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        reference = f"{registry.host}/team/app:1"
        body = put_image(layout, reference)
        assert files_of(await bring(reference))["etc/a"] == b"new"
        with pytest.raises(ArtifactError):
            await bring(f"{registry.host}/team/app:none")
        for blob in registry.blobs:
            if body["layers"][1]["digest"].endswith(blob.parent.name):
                os.truncate(blob, blob.stat().st_size // 2)
        store.remove("it")
        with pytest.raises(ArtifactError):
            await bring(reference)
        assert len(repositories) == 4
        assert lines_to(registry.host) == []


def test_one_that_is_closed_opens_no_other_line(layout, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        repository = import_late("vmfork.oci.registry", "Repository")(Reference.parse(f"{registry.host}/team/app:1"))
        assert repository.read_manifest("1")
        assert len(lines_to(registry.host)) == 1
        repository.close()
        assert lines_to(registry.host) == []
        with pytest.raises(Closed, match=registry.host):
            repository.read_manifest("1")


def test_an_error_that_somebody_keeps_keeps_no_line(layout, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        with import_late("vmfork.oci.registry", "Repository")(Reference.parse(f"{registry.host}/team/app:1")) as there:
            with pytest.raises(ArtifactError) as missing:
                there.read_manifest("none")
            with pytest.raises(HostError) as refused:
                there.put_manifest("2", b"no manifest")
            assert len(lines_to(registry.host)) == 1
        assert lines_to(registry.host) == []
        assert (missing.value.reason, "answered" in str(refused.value)) == ("the registry has no manifests/none", True)


@contextmanager
def asking_slowly(asked: threading.Event, answers: threading.Event) -> Iterator[str]:
    """The host of a registry that asks who we are once `answers` is set, and has everything for who says so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            is_known = "Authorization" in self.headers
            if not is_known:
                asked.set()
                answers.wait()
            self.send_response(200 if is_known else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        answers.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_request_that_is_under_way_when_all_is_closed_fails_at_once_and_leaves_no_line(credentials, caplog):
    asked, answers = threading.Event(), threading.Event()
    # The thread goes on, and with it what it knows.
    with asking_slowly(asked, answers) as host, ThreadPoolExecutor(1) as pool:
        log_in(credentials, host)
        repository_type = import_late("vmfork.oci.registry", "Repository")
        repository = repository_type(Reference.parse(f"{host}/team/app:1"), plain_http=True)
        has = pool.submit(repository.has, Descriptor.of(b"data", "application/octet-stream"))
        asked.wait()
        repository.close()
        with pytest.raises(HostError, match="cannot be reached"):
            has.result(timeout=10)  # which nobody has answered
        assert lines_to(host) == []
        answers.set()
    assert caplog.records == []  # as of another try


class Breaking:
    """A line to a registry that breaks behind `after` bytes, `times` times. What was asked by it is in `asked`."""

    def __init__(self, registry: Registry, *, after: int, times: int) -> None:
        self._port = int(registry.host.partition(":")[2])
        self._after, self._left = after, times
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[bytes] = []
        self._lines: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._port))
            self._lines += [client, there]
            for work in (self._ask, self._answer):
                self._threads.append(threading.Thread(target=work, args=(client, there)))
                self._threads[-1].start()

    def _ask(self, client: socket.socket, there: socket.socket) -> None:
        while data := _receive(client):
            self.asked.append(data)
            with suppress(OSError):
                there.sendall(data)
        _end(there)

    def _answer(self, client: socket.socket, there: socket.socket) -> None:
        told = 0
        while data := _receive(there):
            told += len(data)
            with self._lock:
                breaks = told > self._after and self._left > 0
                self._left -= breaks
            with suppress(OSError):
                client.sendall(data)
            if breaks:
                break
        _end(client)
        _end(there)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
        self._threads[0].join()
        for line in self._lines:
            _end(line)
        for thread in self._threads:
            thread.join()
        for line in (self._listener, *self._lines):
            line.close()


def _receive(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except OSError:
        return b""


def _end(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def breaking(registry: Registry, *, after: int, times: int) -> Iterator[Breaking]:
    line = Breaking(registry, after=after, times=times)
    try:
        yield line
    finally:
        line.close()


async def test_layers_come_side_by_side(bring, tmp_path, monkeypatch):
    repository_type = import_late("vmfork.oci.registry", "Repository")
    download, together = repository_type.download, threading.Barrier(4)

    def meet(repository: Repository, layer: Descriptor, *more: object) -> None:
        if layer.size_bytes > _LAYER:
            together.wait(_MEET_LIMIT_S)  # where one came after the other, they would never be four
        download(repository, layer, *more)

    monkeypatch.setattr(repository_type, "download", meet)
    bodies = {f"file-{number}": os.urandom(_LAYER) for number in range(4)}
    layout = LayoutWriter(tmp_path / "several")
    layout.add_image([make_layer([Member(name, body=body)]) for name, body in bodies.items()])
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        found = files_of(await bring(f"{registry.host}/team/app:1"))
    assert {name: found[name] for name in bodies} == bodies


async def test_a_layer_goes_on_where_the_line_broke(bring, tmp_path):
    body = os.urandom(4 << 20)
    layout = LayoutWriter(tmp_path / "large")
    layout.add_image([make_layer([Member("large", body=body)])])
    with running_registry(tmp_path / "registry") as registry, breaking(registry, after=3 << 19, times=2) as line:
        put_image(layout, f"{registry.host}/team/app:1")
        image = await bring(f"{line.host}/team/app:1")
        assert files_of(image)["large"] == body
        ranges = [asked for asked in line.asked if b"Range: bytes=" in asked]
        assert len(ranges) == 2
        assert not any(b"Range: bytes=0-" in asked for asked in ranges)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_what_is_read_at_once_is_read_on_where_the_line_broke(tmp_path, times):
    data = os.urandom(4 << 20)
    described = Descriptor.of(data, "application/octet-stream")
    with running_registry(tmp_path / "registry") as registry, breaking(registry, after=3 << 19, times=times) as line:
        repository_type = import_late("vmfork.oci.registry", "Repository")
        with repository_type(Reference.parse(f"{registry.host}/team/app:1")) as repository:
            repository.put(described, data)
        with repository_type(Reference.parse(f"{line.host}/team/app:1")) as repository:
            assert repository.read(described) == data
        ranges = [b"Range: bytes=" in asked for asked in line.asked if asked.startswith(b"GET")]
        assert ranges == [False, True, True, True][: times + 1]


DATA = [f"content {number}".encode() for number in range(6)]


@contextmanager
def putting(registry: Registry) -> Iterator[tuple[Repository, list[str]]]:
    """A repository as another process has it, and the requests by it, to which `Breaking` listens."""
    asked: list[str] = []
    with breaking(registry, after=0, times=0) as line:
        repository = import_late("vmfork.oci.registry", "Repository")(
            Reference.parse(f"{line.host}/team/app:1"), plain_http=True
        )
        with repository:
            yield repository, asked
        begins = [data.split(b" ")[0].decode() for data in line.asked]
        asked += [begin for begin in begins if begin in ("HEAD", "GET", "POST", "PUT")]


def put_all(repository: Repository, data: list[bytes]) -> None:
    for each in data:
        repository.put(Descriptor.of(each, "application/octet-stream"), each)


def test_a_new_repository_is_asked_once_whether_it_has_what_is_put(tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        with putting(registry) as (repository, asked):
            put_all(repository, [*DATA, DATA[2]])
            assert repository.sent_bytes == sum(map(len, DATA))
        assert asked == ["HEAD", "GET", *(["POST", "PUT"] * len(DATA))]
        assert {blob.read_bytes() for blob in registry.blobs} == {*DATA}


def test_what_a_push_left_that_broke_off_is_not_sent_again(tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        with putting(registry) as (repository, _):
            put_all(repository, DATA[:4])
        with putting(registry) as (repository, asked):
            put_all(repository, DATA)
            assert repository.sent_bytes == sum(map(len, DATA[4:]))
        assert asked == ["HEAD"] * 4 + ["HEAD", "POST", "PUT"] * 2


def test_where_the_first_did_not_arrive_the_others_are_sent_once_more(tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        with putting(registry) as (repository, _):
            put_all(repository, DATA[1:4])
        with putting(registry) as (repository, asked):
            put_all(repository, DATA)
        assert asked.count("HEAD") == 1
        assert {blob.read_bytes() for blob in registry.blobs} == {*DATA}


def test_a_repository_with_a_tag_is_asked_for_each(layout, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        there = len(registry.blobs)
        with putting(registry) as (repository, asked):
            put_all(repository, DATA[:2])
        assert asked == ["HEAD", "GET", "POST", "PUT", "HEAD", "POST", "PUT"]
        assert len(registry.blobs) == there + 2


def test_several_that_put_at_once_ask_a_new_one_once(tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        with putting(registry) as (repository, asked), ThreadPoolExecutor(len(DATA)) as pool:
            list(pool.map(lambda each: put_all(repository, [each]), DATA))
        assert sorted(asked) == sorted(["HEAD", "GET", *(["POST", "PUT"] * len(DATA))])
        assert {blob.read_bytes() for blob in registry.blobs} == {*DATA}


def test_one_that_cannot_be_reached_is_told_as_that_at_once(tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        host = registry.host
    repository_type = import_late("vmfork.oci.registry", "Repository")
    with (
        repository_type(Reference.parse(f"{host}/team/app:1"), plain_http=True) as repository,
        pytest.raises(HostError, match="cannot be reached"),
    ):
        repository.read(Descriptor.of(b"data", "application/octet-stream"))


async def test_a_registry_that_is_killed_half_way_leaves_nothing(bring, store, layout, tmp_path, monkeypatch):
    repository_type = import_late("vmfork.oci.registry", "Repository")
    download, turn = repository_type.download, threading.Lock()
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")

        def kill_behind(*args: object) -> None:
            with turn:
                download(*args)
                registry.kill()

        monkeypatch.setattr(repository_type, "download", kill_behind)
        with pytest.raises(HostError, match="cannot be reached") as told:
            await bring(f"{registry.host}/team/app:1")
        assert told.value.hint
        assert nothing_is_left(store)


@pytest.mark.parametrize("behind", ["nothing", "a layer"])
async def test_a_registry_that_says_nothing_more_holds_up_nobody(
    bring, store, layout, repositories, tmp_path, monkeypatch, behind
):
    """It has taken the request, and its line is open. Whoever gives up has ended at once, with nothing left."""
    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        silent = threading.Event()
        if behind == "nothing":
            registry.process.send_signal(signal.SIGSTOP)
            silent.set()
        else:
            registry.stop_behind(monkeypatch, "download", silent.set)
        await give_up_behind(registry, silent, bring(f"{registry.host}/team/app:1", plain_http=True))
    with pytest.raises(ImageNotFound):
        store.open("it")


async def test_when_it_is_cancelled_while_layers_come_nothing_is_left(bring, store, layout, repositories, tmp_path):
    def cancel(progress: Progress) -> None:
        if progress.step == "fetching layers" and not task.cancelling():
            task.cancel()

    with running_registry(tmp_path / "registry") as registry:
        put_image(layout, f"{registry.host}/team/app:1")
        task = asyncio.ensure_future(bring(f"{registry.host}/team/app:1", progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing_is_left(store)
        assert (len(repositories), lines_to(registry.host)) == (2, [])


async def test_a_layer_that_was_cut_off_in_the_registry_is_refused(bring, store, layout, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        body = put_image(layout, f"{registry.host}/team/app:1")
        for blob in registry.blobs:
            if body["layers"][1]["digest"].endswith(blob.parent.name):
                os.truncate(blob, blob.stat().st_size // 2)
        with pytest.raises(ArtifactError) as told:
            await bring(f"{registry.host}/team/app:1")
        assert body["layers"][1]["digest"] in str(told.value)
        assert nothing_is_left(store)


async def test_what_is_no_image_is_refused_by_its_kind(bring, store, layout, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        reference = f"{registry.host}/team/app:1"
        body = put_image(layout, reference)
        kind = "application/vnd.example.chart.v1+json"
        data = json.dumps(body | {"config": body["config"] | {"mediaType": kind}}).encode()
        assert Manifest.from_json(data).config.media_type == kind
        odd = json.dumps(body | {"layers": [body["layers"][0] | {"mediaType": "application/vnd.example.disk"}]})
        with import_late("vmfork.oci.registry", "Repository")(Reference.parse(reference)) as repository:
            repository.put_manifest("chart", data)
            repository.put_manifest("odd", odd.encode())
        with pytest.raises(ArtifactError, match=r"chart"):
            await bring(f"{registry.host}/team/app:chart")
        with pytest.raises(ArtifactError, match=r"application/vnd\.example\.disk"):
            await bring(f"{registry.host}/team/app:odd")
        assert nothing_is_left(store)
        assert Descriptor.from_json(body["config"]).size_bytes


async def test_what_is_not_for_us_is_refused_before_its_layers_are_fetched(bring, store, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        for tag, more, told in (
            ("arm", {"arch": "arm64"}, "linux/arm64"),
            ("none", {"layers": []}, "no layers"),
            ("count", {"diff_ids": ["sha256:0"]}, "tells of 1 layers"),
            ("large", {}, "(limit unpacked_bytes)"),
        ):
            layout = LayoutWriter(tmp_path / tag)
            layers = [make_layer(members) for members in more.pop("layers", LAYERS)]
            layout.add_image(layers, **more)
            body = put_image(layout, f"{registry.host}/team/app:{tag}")
            for blob in registry.blobs:
                if any(each["digest"].endswith(blob.parent.name) for each in body["layers"]):
                    blob.unlink()
            limits = ImportLimits(unpacked_bytes=100 if tag == "large" else 1 << 20)
            with pytest.raises(ArtifactError) as error:
                await bring(f"{registry.host}/team/app:{tag}", limits=limits)
            assert told in error.value.reason
        assert nothing_is_left(store)


@pytest.mark.needs("root")
async def test_a_disk_that_becomes_full_is_told_and_nothing_is_left(bring, store, tmp_path):
    """The layers are as small as they are sent, and their files are not."""
    layout = LayoutWriter(tmp_path / "in")
    layout.add_image([make_layer([Member("large", body=os.urandom(4096) * 1000)])])
    layout.add_image([make_layer([Member("larger", body=os.urandom(9 << 20))])], tag="more")
    store.folder.mkdir()
    assert mount_tmpfs(store.folder, size_bytes=3 << 20)
    try:
        with running_registry(tmp_path / "registry") as registry:
            put_image(layout, f"{registry.host}/team/app:more")
            with pytest.raises(HostError, match="no space for the layers"):
                await bring(f"{registry.host}/team/app:more")
            layout.manifests.pop()
            put_image(layout, f"{registry.host}/team/app:1")
            with pytest.raises(HostError, match="no space is left") as error:
                await bring(f"{registry.host}/team/app:1")
            assert error.value.hint
            assert nothing_is_left(store)
    finally:
        unmount(store.folder)


async def test_whoever_is_not_known_reads_by_a_token_for_everybody(bring, layout, credentials, tmp_path, monkeypatch):
    """As public registries have it: all that is asked for is a token, and that is given without a name."""
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with (
        running_issuer(certificate, key, user=USER, password=PASSWORD, is_public=True) as issuer,
        running_registry(tmp_path / "tokens", tls=(certificate, key), issuer=issuer) as registry,
    ):
        reference = f"{registry.host}/team/app:1"
        log_in(credentials, registry.host)
        put_image(layout, reference)
        credentials.write_text("{}")
        issuer.granted.clear()
        assert files_of(await bring(reference))["etc/a"] == b"new"
        assert {*issuer.granted} == {"repository:team/app:pull"}


@pytest.mark.parametrize("said", [{"credsStore": "test"}, {"credHelpers": {"HOST": "test"}}])
async def test_with_a_password_from_a_helper_of_dockers(bring, layout, credentials, tmp_path, monkeypatch, said):
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    secret = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\n[ $1 = get ] && [ $(cat) ] && echo '{secret}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    with running_registry(tmp_path / "closed", htpasswd=HTPASSWD) as registry:
        credentials.write_text(json.dumps(said).replace("HOST", registry.host))
        put_image(layout, f"{registry.host}/team/app:1")
        assert files_of(await bring(f"{registry.host}/team/app:1"))["etc/a"] == b"new"


async def test_a_helper_of_dockers_that_is_missing_is_told_as_that(bring, layout, credentials, tmp_path):
    with running_registry(tmp_path / "closed", htpasswd=HTPASSWD) as registry:
        credentials.write_text(json.dumps({"credsStore": "gone"}))
        with pytest.raises(HostError, match="docker-credential-gone was not found"):
            await bring(f"{registry.host}/team/app:1")


async def test_by_docker_hubs_names_from_one_that_plays_it(bring, layout, credentials, tmp_path, monkeypatch):
    """Where its server is, a registry on the loopback is asked: the hub itself cannot be reached by tests."""
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with (
        running_issuer(certificate, key, user=USER, password=PASSWORD) as issuer,
        running_registry(tmp_path / "hub", tls=(certificate, key), issuer=issuer) as registry,
    ):
        monkeypatch.setattr("vmfork.oci.reference.HUB_SERVER", registry.host)
        log_in(credentials, "https://index.docker.io/v1/")
        put_image(layout, "docker.io/app:1")
        issuer.granted.clear()
        for text in ("docker.io/app:1", "docker.io/library/app:1"):
            image = await bring(text)
            assert files_of(image)["etc/a"] == b"new"
            assert text in image.sources
        assert {*issuer.granted} == {"repository:library/app:pull"}
        log_in(credentials, registry.host)
        with pytest.raises(HostError, match=r"docker\.io .*does not know us|docker\.io lets us not") as told:
            await bring("docker.io/app:1")
        assert "docker login docker.io" in told.value.hint
