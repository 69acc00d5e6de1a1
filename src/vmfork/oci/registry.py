"""A repository of a registry: content is put there and read by its digest, manifests by a tag too.

`oras` answers when a registry asks who we are, by password or token (credentials.py finds them). Its own requests have
no time limit, and wait two minutes in all before they fail: they are made here, by session.py.
"""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import requests
from oras.auth import get_auth_backend
from oras.auth.utils import parse_auth_header

from vmfork.errors import ArtifactError, Closed, HostError
from vmfork.oci.credentials import find_credentials
from vmfork.oci.descriptor import digest_of
from vmfork.oci.keychain import Helpers
from vmfork.oci.layout import MOST_DOCUMENT
from vmfork.oci.manifest import INDEX_TYPE, MANIFEST_TYPE
from vmfork.oci.session import LIMITS_S, Session, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import IO

    from vmfork.oci.descriptor import Descriptor
    from vmfork.oci.reference import Reference

_PIECE = 1 << 20
# Of what a registry asks for, as it is told.
_MOST_ASKED = 200
# As often is a download gone on with, when its line broke.
_BROKEN_LINES = 5


class Repository:
    """The repository that `reference` is in. May be used by several threads at once, each by connections of its own.

    Over plain HTTP with `plain_http`, and where a registry on this host speaks no TLS. Who we are is in Docker's file
    of credentials (`DOCKER_CONFIG`, else `~/.docker/config.json`). It owns these connections until it is closed.
    """

    takes_several = True

    def __init__(self, reference: Reference, *, plain_http: bool = False) -> None:
        self.reference = reference
        self._plain_http = plain_http
        self._plain = plain_http or (reference.is_local and not _speaks_tls(reference.server))
        self._of_thread = threading.local()
        self._doors = ExitStack()
        self._helpers = Helpers()
        self._doors.callback(self._helpers.close)
        self._is_closed = False
        self._changing = threading.Lock()
        self._asking = threading.Lock()
        self._is_new: bool | None = None
        self._put: set[str] = set()
        self.sent_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """No connection is left, of any thread, and no helper. What waits for one fails at once."""
        with self._changing:
            self._is_closed = True
        self._doors.close()

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the content is there."""
        return self._ask("HEAD", f"blobs/{descriptor.digest}", {200, 404}).status_code == 200

    def put(self, descriptor: Descriptor, data: bytes) -> None:
        """The content is there. It was sent if it was not, or may not have been."""
        if self._need_not_send(descriptor):
            return
        answer = self._ask("POST", "blobs/uploads/", {202})
        with self._reaching():
            where = self._door.session.resolve(answer.url, answer.headers.get("Location", ""))
        joined = "&" if "?" in where else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
        self._ask("PUT", "", {201}, url=f"{where}{joined}digest={descriptor.digest}", data=data, headers=headers)
        with self._changing:
            self.sent_bytes += len(data)
            self._put.add(descriptor.digest)

    def _need_not_send(self, descriptor: Descriptor) -> bool:
        """Whether the content is there. Where nobody can know but by a question for each, that is asked.

        A repository is new that has no tag and lacks the first content that is put: it has nothing, and one question in
        three of a push is saved. What a push left there that broke off is found by its first content. Where that was
        the one that did not arrive, what did is sent once more.
        """
        if descriptor.digest in self._put:
            return True
        with self._asking:
            if self._is_new is None:
                is_there = self.has(descriptor)
                self._is_new = not is_there and not self._has_tags()
                return is_there
        return not self._is_new and self.has(descriptor)

    def _has_tags(self) -> bool:
        """Whether the repository has a tag; also where that is not told."""
        try:
            data = self._find_document("tags/list?n=1", "application/json")
            return data is not None and bool(json.loads(data)["tags"])
        except (HostError, ArtifactError, ValueError, TypeError, KeyError, RecursionError):
            return True

    def read(self, descriptor: Descriptor) -> bytes:
        """The content. Raises `ArtifactError` when it is missing, or not what its digest says.

        Where the line breaks it goes on from there, as `download`.
        """
        file = io.BytesIO()
        self.download(descriptor, file, lambda _size: None)
        data = file.getvalue()
        if digest_of(data) != descriptor.digest:
            raise ArtifactError(
                f"{self.reference}: blobs/{descriptor.digest}", "its content is not what its digest says"
            )
        return data

    def download(self, descriptor: Descriptor, file: IO[bytes], check: Callable[[int], None]) -> None:
        """`file` has the content behind its beginning, which may be there from an earlier try; it is not compared.

        Where the line breaks it goes on from there, a few times. `check(size)` is called with the size that is there,
        and may raise. Raises `ArtifactError` when the registry has not got it, or has more, `HostError`, and `OSError`
        where the file takes no more.
        """
        for left in reversed(range(_BROKEN_LINES)):
            have = file.seek(0, os.SEEK_END)
            if have >= descriptor.size_bytes:
                return
            try:
                self._download(descriptor, file, have, check)
            except HostError:
                if not left or file.seek(0, os.SEEK_END) == have:
                    raise
        have = file.seek(0, os.SEEK_END)
        if have < descriptor.size_bytes:
            raise ArtifactError(
                f"{self.reference}: {descriptor.digest}", f"it ended behind {have} of {descriptor.size_bytes} bytes"
            )

    def _download(self, descriptor: Descriptor, file: IO[bytes], have: int, check: Callable[[int], None]) -> None:
        what = f"blobs/{descriptor.digest}"
        headers = {"Range": f"bytes={have}-"} if have else {}
        answer = self._ask("GET", what, {200, 206, 404, 416}, headers=headers, stream=True)
        with answer:
            if answer.status_code == 404:
                raise ArtifactError(str(self.reference), f"the registry has no {what}")
            if answer.status_code == 416:  # there is nothing behind what was sent
                raise ArtifactError(
                    f"{self.reference}: {what}", f"it ended behind {have} of {descriptor.size_bytes} bytes"
                )
            if answer.status_code == 200:  # it knows no ranges: from the beginning
                have = 0
                file.seek(0)
                file.truncate()
            for piece in self._pieces_of(answer):
                have += len(piece)
                if have > descriptor.size_bytes:
                    raise ArtifactError(f"{self.reference}: {what}", f"it has more than {descriptor.size_bytes} bytes")
                file.write(piece)
                check(have)

    def _pieces_of(self, answer: requests.Response) -> Iterator[bytes]:
        """What goes wrong on the way is told as the host's; what is done with a piece is not on the way."""
        pieces = answer.iter_content(_PIECE)
        while True:
            with self._reaching():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def read_manifest(self, version: str, accept: tuple[str, ...] = (MANIFEST_TYPE, INDEX_TYPE)) -> bytes:
        """The manifest of that tag or digest. Raises `ArtifactError` when there is none."""
        what = f"manifests/{version}"
        data = self._find_document(what, ", ".join(accept))
        if data is None:
            raise ArtifactError(str(self.reference), f"the registry has no {what}")
        if ":" in version and digest_of(data) != version:
            raise ArtifactError(str(self.reference), "its manifest is not what its digest says")
        return data

    def find_manifest(self, version: str) -> bytes | None:
        """The same; `None` where there is none."""
        try:
            return self.read_manifest(version)
        except ArtifactError:
            return None

    def _find_document(self, what: str, accept: str) -> bytes | None:
        """`None` where there is none. Raises `ArtifactError` for one that is larger than any."""
        answer = self._ask("GET", what, {200, 404}, headers={"Accept": accept}, stream=True)
        data = b""
        with answer:
            for piece in self._pieces_of(answer):  # what was read to its end leaves its connection for the next
                data += piece
                if len(data) > MOST_DOCUMENT:
                    raise ArtifactError(f"{self.reference}: {what}", f"it has more than {MOST_DOCUMENT} bytes")
        return None if answer.status_code == 404 else data

    def put_manifest(self, version: str, data: bytes) -> None:
        """The manifest is there, under that tag. All that it names must be there."""
        headers = {"Content-Type": MANIFEST_TYPE}
        self._ask("PUT", f"manifests/{version}", {201}, data=data, headers=headers)

    def _ask(
        self,
        method: str,
        what: str,
        expected: set[int],
        *,
        url: str = "",
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> requests.Response:
        """The answer about `what` in the repository, or where the registry sent us, `url`.

        Who we are is for the registry alone, whoever else asks: what is uploaded may lie elsewhere, with a right to it
        in the address.
        """
        url = url or f"{self._base}{self.reference.repository}/{what}"
        what = what or url
        with self._reaching():
            door = self._door
            given = {**(headers or {}), **(door.headers if door.session.is_base(url) else {})}
            answer = door.session.request(method, url, headers=given, **options)
            if _is_challenge(answer) and door.session.is_base(answer.url):  # a redirect may have led on
                answer = door.introduce(answer, method, url, headers=dict(headers or {}), **options)
        if answer.status_code not in expected:
            with answer, self._reaching():  # what is not read to its end holds its connection
                raise self._refused(answer, f"{method} {what.partition('?')[0]}")
        return answer

    def _refused(self, answer: requests.Response, what: str) -> HostError:
        host = self.reference.host
        if answer.status_code in (401, 403):
            return HostError(
                f"the registry {host} lets us not: {what}: {answer.status_code}",
                hint=_login(host),
                log=words_of(answer),
            )
        return HostError(
            f"the registry {host} answered {what} with {answer.status_code} {answer.reason}",
            hint="see what its log says, or try again",
            log=words_of(answer),
        )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """What goes wrong on the way is told as the host's."""
        host = self.reference.host
        try:
            yield
        except requests.exceptions.SSLError as error:
            hint = "give its authority by REQUESTS_CA_BUNDLE; or plain_http (--plain-http) where it speaks no TLS"
            raise HostError(f"the registry {host} is not to be trusted: {_reason(error)}", hint=hint) from error
        except (requests.RequestException, OSError) as error:
            hint = "see that it runs and is reached from here, then try again"
            raise HostError(f"the registry {host} cannot be reached: {_reason(error)}", hint=hint) from error
        except (ValueError, AttributeError) as error:  # oras: what an issuer answered is none of its answers
            raise HostError(f"the registry {host} does not know us: {error}", hint=_login(host)) from error

    @property
    def _base(self) -> str:
        return f"{'http' if self._plain else 'https'}://{self.reference.server}/v2/"

    @property
    def _door(self) -> _Door:
        """That of this thread. Raises `Closed`, so that a thread which nobody waits for opens no other."""
        with self._changing:
            if self._is_closed:
                raise Closed(f"the line to {self.reference.host}")
            if not hasattr(self._of_thread, "door"):
                self._of_thread.door = _Door(self.reference, self._base, self._helpers, plain_http=self._plain_http)
                self._doors.callback(self._of_thread.door.session.close)
        door: _Door = self._of_thread.door
        return door


class _Door:
    """The connections of one thread, and what it says of who we are once it was asked."""

    def __init__(self, reference: Reference, base: str, helpers: Helpers, *, plain_http: bool) -> None:
        self._reference = reference
        self._helpers = helpers
        self._plain = base.startswith("http:")
        self.headers: dict[str, str] = {}
        self.session = Session(base, plain_http=plain_http)
        self.session.trust_env = not self._plain or not reference.is_local  # no proxy leads to this host

    def introduce(self, answer: requests.Response, method: str, url: str, **options: Any) -> requests.Response:
        """The answer to the same request with who we are, as the registry asked for it by `answer`, which is closed.

        Raises `HostError` where it asks for what nobody has, or in no way that is known here.
        """
        host = self._reference.host
        with answer:
            said = words_of(answer)
        asked = answer.headers["Www-Authenticate"]
        is_basic = asked.lower().startswith("basic")
        if not is_basic and not parse_auth_header(asked).realm:
            raise HostError(
                f"the registry {host} asks who we are by {asked[:_MOST_ASKED]!r}, neither Basic nor of a token",
                hint="see how it, or the proxy before it, is set up",
                log=said,
            )
        auth = get_auth_backend("basic" if is_basic else "token", self.session, insecure=self._plain)
        found = find_credentials(self._reference, self._helpers)
        if found is not None:
            auth.set_basic_auth(*found)
        elif is_basic:  # of that kind oras takes ORAS_USER and ORAS_PASS, whichever registry they are for
            raise HostError(
                f"the registry {host} asks for a login, and none is known for it", hint=_login(host), log=said
            )
        headers, _ = auth.authenticate_request(answer, options.pop("headers"))
        self.headers = {key: value for key, value in headers.items() if key == "Authorization"}
        return self.session.request(method, url, headers=headers, **options)


def _is_challenge(answer: requests.Response) -> bool:
    """Whether who we are is asked for. A 403 without that knows us, and says no (RFC 9110 15.5.4)."""
    return answer.status_code in (401, 403) and "Www-Authenticate" in answer.headers


def _speaks_tls(host: str) -> bool:
    """Whether TLS is spoken there; also where nobody is there to speak."""
    name, _, port = host.partition(":")
    # One that reads whom this host trusts takes 27 ms.
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE  # nothing is said over it
    try:
        with socket.create_connection((name, int(port or 443)), LIMITS_S[0]) as line, unchecked.wrap_socket(line):
            return True
    except ssl.SSLError:
        return False
    except OSError:
        return True


def _reason(error: Exception) -> object:
    """What the library under the library said."""
    return getattr(error.args[0] if error.args else error, "reason", error)


def _login(host: str) -> str:
    return f"log in with a tool that writes Docker's file of credentials: docker login {host}, or oras login {host}"
