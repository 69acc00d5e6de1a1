"""What sends requests to a registry: with a limit for each wait, and as nobody but whom they say."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL
from urllib3.util import Retry

from vmfork.errors import HostError
from vmfork.oci.reference import is_this_host

if TYPE_CHECKING:
    from collections.abc import Callable

# To connect, and for each piece of an answer. A registry may take long over the last piece of a layer.
LIMITS_S = (10.0, 120.0)
_TRIES = 3
# Those by which a server says `Retry-After` (RFC 9110 10.2.3; 6585 4), and how long we wait for one request in all.
_LATER = (413, 429, 503)
_PATIENCE_S = 60.0
# Of what a server says beside a refusal.
_MOST_WORDS = 2000


class _Tries(Retry):
    """So many more, as long as the answer `is_wanted`."""

    def __init__(self, *args: Any, is_wanted: Callable[[], bool], **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_wanted = is_wanted

    def new(self, **options: Any) -> Self:
        return super().new(is_wanted=self._is_wanted, **options)

    def increment(self, *args: Any, **options: Any) -> Self:
        if options.get("error") is not None and not self._is_wanted():
            raise options["error"]
        return super().increment(*args, **options)


class _Limited(HTTPAdapter):
    """Every request has a time limit, and is sent again where the connection broke before an answer.

    So it is where a server asks us to come back, within limits: urllib3 (2.8) would sleep for up to six hours, three
    times, and nothing wakes it. It knows its connections, so that whoever waits in one can be woken by another thread.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._lines: WeakSet[Any] = WeakSet()
        self._noting = threading.Lock()
        tries = _Tries(_TRIES, is_wanted=lambda: not self._closed.is_set(), respect_retry_after_header=False)
        super().__init__(max_retries=tries)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._know(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if is_new:
            self._know(manager)
        return manager

    def _know(self, manager: Any) -> None:
        """Connections of the manager are known here, whatever kind it makes."""
        manager.pool_classes_by_scheme = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": self._make_known(pool.ConnectionCls)})
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def _make_known(self, kind: Any) -> type:
        def connect(line: Any) -> None:
            self._check_open()
            kind.connect(line)
            with self._noting:
                self._lines.add(line.sock)
            self._check_open()  # whoever closed all meanwhile did not know it

        return type(kind.__name__, (kind,), {"connect": connect})

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise OSError("the line was closed")

    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
        try:
            return self._send(request, options | {"timeout": LIMITS_S})
        finally:
            if self._closed.is_set():  # meanwhile, by another thread
                self.close()

    def _send(self, request: Any, options: dict[str, Any]) -> Any:
        """The answer. It is waited for where the server says how long: all that is asked here may be asked twice.

        An upload that was begun and is not gone on with is the registry's to forget. Raises `HostError` when it asks
        for more than our patience.
        """
        patience_s, left = _PATIENCE_S, _TRIES
        while True:
            answer = super().send(request, **options)
            wait_s = _asked_to_wait_s(answer)
            if wait_s is not None and wait_s > patience_s:
                with answer:
                    raise _refuse_to_wait(answer, wait_s)
            if wait_s is None or not left:
                return answer
            answer.close()
            patience_s, left = patience_s - wait_s, left - 1
            self._closed.wait(wait_s)
            self._check_open()

    def close(self) -> None:
        """No connection is left. A request that another thread waits in fails.

        urllib3 (2.8) forgets its pools, and their connections stay as long as someone else knows them: an error does,
        by its traceback.
        """
        self._closed.set()
        with self._noting:
            lines = [*self._lines]
        for line in lines:
            # Below TLS: what is being sent may not go on without it. TLS within TLS has its socket in another.
            under = getattr(line, "socket", line)
            with suppress(OSError, ValueError):  # it is closed already
                socket.socket.shutdown(under, socket.SHUT_RDWR)
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - they cannot be iterated otherwise
                with suppress(KeyError):
                    manager.pools[key].close()
        super().close()


class Session(requests.Session):
    """Proxies and authorities are the environment's. Who we are is in the headers of each request alone.

    requests (2.34) asks `~/.netrc` wherever a request has no `auth`, by the host's name without its port: what is there
    goes over the token or the login that a request has already, and its `default` to whomever a redirect leads to.

    What a registry leads to, by a redirect, for an upload or for a token, may be elsewhere. It is spoken to by plain
    HTTP only where the user meant that: anywhere with `plain_http`, and on this host by a registry at `base` that
    speaks no TLS either.
    """

    def __init__(self, base: str, *, plain_http: bool) -> None:
        super().__init__()
        self._base = base
        self._plain_http = plain_http
        self.auth = lambda request: request
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Limited())

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """Whom a redirect leads to is told who we are where that is the same server, and nobody is looked for."""
        headers = prepared_request.headers
        if "Authorization" in headers and self.should_strip_auth(response.request.url, prepared_request.url):
            del headers["Authorization"]

    def get_redirect_target(self, resp: Any) -> str | None:
        where = super().get_redirect_target(resp)
        try:
            return where and self.resolve(resp.url, where)
        except InvalidURL:
            resp.close()  # nobody else has it, and it holds its connection
            raise

    def resolve(self, url: str, where: str) -> str:
        """What `where` names, in the answer of `url`. Raises requests' `InvalidURL` for what names nothing.

        A registry behind a proxy that speaks TLS for it may not know that, and names itself by `http://`. The same host
        and port go on to be spoken to by TLS: we just did so.
        """
        try:
            found = urlsplit(urljoin(url, where))
            _ = found.port  # is looked at when it is asked for
        except ValueError as error:
            raise InvalidURL(f"it leads to {where!r}: {error}") from error
        base = urlsplit(self._base)
        if (found.scheme, found.netloc.lower()) == ("http", base.netloc.lower()):
            found = found._replace(scheme=base.scheme)
        return found.geturl()

    def is_base(self, url: str) -> bool:
        """Whether that is the registry itself: scheme, host and port."""
        return _origin_of(url) == _origin_of(self._base)

    def send(self, request: Any, **options: Any) -> Any:
        if not self._may_go_to(request.url):
            _, host, _ = _origin_of(request.url)
            raise HostError(
                f"the registry {urlsplit(self._base).netloc} leads to http://{host}: nothing was sent there",
                hint="see how it, or the proxy before it, is set up: it should name that by https",
            )
        return super().send(request, **options)

    def _may_go_to(self, url: str) -> bool:
        scheme, host, _ = _origin_of(url)
        if scheme != "http" or self._plain_http:
            return True
        return urlsplit(self._base).scheme == "http" and is_this_host(host)


def _refuse_to_wait(answer: Any, wait_s: float) -> HostError:
    said = f"{answer.status_code} {answer.reason}"
    return HostError(
        f"{urlsplit(answer.url).netloc} answered with {said}, and asks us to wait for {wait_s:.0f} s",
        hint="try again then; some let those do more who are logged in",
        log=words_of(answer),
    )


def words_of(answer: Any) -> str:
    """The beginning of what the server says, as far as it comes."""
    data = b""
    with suppress(requests.RequestException):
        for piece in answer.iter_content(_MOST_WORDS):
            data += piece
            if len(data) >= _MOST_WORDS:
                break
    return data[:_MOST_WORDS].decode(errors="replace")


def _asked_to_wait_s(answer: Any) -> float | None:
    """How long the server asks us to wait, by seconds or a date; `None` where it does not, or in no such words."""
    said = answer.headers.get("Retry-After", "").strip()
    if answer.status_code not in _LATER or not said:
        return None
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _origin_of(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
