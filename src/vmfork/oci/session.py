"""What sends requests to a registry: with a limit for each wait, and as nobody but whom they say."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

# To connect, and for each piece of an answer. A registry may take long over the last piece of a layer.
LIMITS_S = (10.0, 120.0)
_TRIES = 3


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

    It knows its connections, so that whoever waits in one can be woken by another thread.
    """

    def __init__(self) -> None:
        self._is_closed = False
        self._lines: WeakSet[Any] = WeakSet()
        self._noting = threading.Lock()
        super().__init__(max_retries=_Tries(_TRIES, is_wanted=lambda: not self._is_closed))

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
        if self._is_closed:
            raise OSError("the line was closed")

    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
        try:
            return super().send(request, **(options | {"timeout": LIMITS_S}))
        finally:
            if self._is_closed:  # meanwhile, by another thread
                self.close()

    def close(self) -> None:
        """No connection is left. A request that another thread waits in fails.

        urllib3 (2.8) forgets its pools, and their connections stay as long as someone else knows them: an error does,
        by its traceback.
        """
        self._is_closed = True
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
    """

    def __init__(self) -> None:
        super().__init__()
        self.auth = lambda request: request
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Limited())

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """Whom a redirect leads to is told who we are where that is the same server, and nobody is looked for."""
        headers = prepared_request.headers
        if "Authorization" in headers and self.should_strip_auth(response.request.url, prepared_request.url):
            del headers["Authorization"]
