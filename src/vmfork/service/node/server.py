"""The server of one node: its life, who may call it, and the calls, which only translate."""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import grpc

from vmfork.border import translated
from vmfork.cluster.carried import read_request, write_answer, write_error
from vmfork.cluster.node import Node, is_called_off
from vmfork.cluster.servers import ServerPeers
from vmfork.cluster.terms import find_version
from vmfork.config import find_places
from vmfork.config.servers import is_loopback, parse_address
from vmfork.errors import ClusterError, ConfigError, HostError, StoreBusy
from vmfork.host.folders import make_private
from vmfork.host.lock import FileLock, read_holder
from vmfork.machine.trace import continued
from vmfork.rpc.node import MOST_MESSAGE_BYTES, PING_EVERY_S, TOKEN_KEY, TOKEN_SCHEME
from vmfork.rpc.node_pb2_grpc import add_NodeServicer_to_server
from vmfork.rpc.runtime import hold_runtime
from vmfork.service.node.given import check_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmfork.config import FactoryConfig, Places
    from vmfork.config.servers import Access
    from vmfork.rpc import node_pb2 as pb

# Answers are sent within this. Then callers are cut off.
_LAST_WORDS_S = 0.5
HELLO = "hello"
# gRPC answers nothing to a call that ends by a cancel of its own: its caller would wait for ever.
_GIVEN_UP = ClusterError("what the call waited for was given up", hint="ask again")

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one address would share its callers
    # Callers ask more often whether we live than gRPC's servers bear by default: they would be cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", PING_EVERY_S * 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 30_000),  # a caller whose host is gone: its programs end
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
)


class NodeServer:
    """A node that listens at `address`, `HOST:PORT`, while `run` runs; port 0 takes a free one.

    Callers are let in by the token of `access`; where that has none, by a certificate of its authority. By the same
    `access` the node asks others of its list for their templates, which keep within the `budget`. `config` is as for
    `Template.open`: by default no file is read for it.
    """

    def __init__(
        self,
        address: str,
        access: Access,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        places: Places | None = None,
        config: FactoryConfig | None = None,
    ) -> None:
        self.address = address
        self._access = access
        self._name = name or socket.gethostname()
        self._labels = dict(labels or {})
        self._places = places or find_places()
        self._config = config
        self._quitting = asyncio.Event()
        check_access(address, access)

    def quit(self) -> None:
        """The server ends. Asking again changes nothing."""
        self._quitting.set()

    async def run(self, *, on_ready: Callable[[str], None] = lambda _address: None) -> None:
        """The node served until it was told to quit. Its machines that do not last have ended, those that last run on.

        `on_ready` is told the address. Raises `StoreBusy` where another server has this runtime folder, and `HostError`
        where nobody can listen at the address.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._claim())
            peers = await stack.enter_async_context(ServerPeers((), self._access))
            opening = Node.open(self._name, peers, labels=self._labels, places=self._places, config=self._config)
            node = await stack.enter_async_context(await opening)
            server = self._make_grpc(node)
            stack.push_async_callback(server.stop, _LAST_WORDS_S)
            await server.start()
            on_ready(self.address)
            await self._quitting.wait()

    def _claim(self) -> FileLock:
        path = make_private(self._places.runtime) / "node.lock"
        lock = FileLock.try_acquire(path, holder=f"process {os.getpid()}")
        if lock is None:
            hint = "use that one, end it, or name another folder: VMFORK_RUNTIME_DIR"
            raise StoreBusy(
                f"the runtime folder {self._places.runtime}", f"another server, {read_holder(path)}", hint=hint
            )
        return lock

    def _make_grpc(self, node: Node) -> grpc.aio.Server:
        hold_runtime()
        credentials = _read_credentials(self._access) if self._access.certificate else None
        _check_free(self.address)
        server = grpc.aio.server(options=_OPTIONS, interceptors=[_Door(self._access.token)])
        add_NodeServicer_to_server(_Calls(node), server)
        host, port = parse_address(self.address)
        shown = f"[{host}]" if ":" in host else host
        try:
            if credentials is not None:
                port = server.add_secure_port(f"{shown}:{port}", credentials)
            else:
                port = server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            hint = "is another program there? name another: --listen HOST:PORT"
            raise HostError(f"cannot listen at {self.address}: {error}", hint=hint) from error
        self.address = f"{shown}:{port}"
        return server


def _check_free(address: str) -> None:
    """Raises `HostError` where nobody can listen. A server of gRPC's that could not leaves a poller behind for good."""
    host, port = parse_address(address, field="listen")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        hint = "is another program there? name another: --listen HOST:PORT"
        raise HostError(f"cannot listen at {address}: {error.strerror}", hint=hint) from error


def check_access(address: str, access: Access) -> None:
    """Raises `ConfigError` where anybody could come in, or read along, without that somebody has said so."""
    parse_address(address, field="listen")
    if not access.token and not (access.ca and access.certificate):
        reason = "anybody who reaches the address could run machines here"
        hint = "give --token-file; or --cert, --key and --ca, and callers need a certificate of that authority"
        raise ConfigError("token", "", reason, hint=hint)
    if not access.certificate and not access.plaintext and not is_loopback(address):
        reason = f"all that is said at {address}, the token too, could be read on its way"
        hint = "give --cert and --key; where the network is encrypted by itself, say --plaintext"
        raise ConfigError("certificate", "", reason, hint=hint)


def _read_credentials(access: Access) -> grpc.ServerCredentials:
    ca, certificate, key = access.read()
    mutual = not access.token
    try:
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca if mutual else None, require_client_auth=mutual
        )
    except ValueError as error:
        raise ConfigError("certificate", access.certificate, str(error)) from error


class _Door(grpc.aio.ServerInterceptor):  # type: ignore[misc] # gRPC has no types
    """Who sends another token, or none, is turned away before anything of the call is read."""

    def __init__(self, token: str) -> None:
        self._wanted = f"{TOKEN_SCHEME}{token}".encode() if token else b""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if self._wanted:
            sent = dict(details.invocation_metadata).get(TOKEN_KEY, "")
            if not hmac.compare_digest(sent.encode() if isinstance(sent, str) else sent, self._wanted):
                # As a stream, so that no message is waited for.
                return grpc.stream_stream_rpc_method_handler(_refuse if sent else _refuse_unknown)
        return await continuation(details)


async def _refuse(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "its token is another than ours")


async def _refuse_unknown(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "it asks for a token, and none was given")


def _read_carried(context: Any) -> dict[str, str]:
    """What came along with the call. Keys of binary data, which hold bytes, end with `-bin`: none is ours."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


class _Calls:
    """What gRPC calls, under the names that node.proto gives it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Call(self, request: pb.Request, context: Any) -> pb.Answer:  # noqa: N802
        try:
            verb, arguments = read_request(request)
            if verb == HELLO:
                return write_answer(find_version())
            check_call(verb, arguments)
            with continued(_read_carried(context)):
                return write_answer(await self._node.serve(verb, *arguments))
        except asyncio.CancelledError:
            if is_called_off():
                raise
            return write_error(_GIVEN_UP)
        except Exception as error:  # noqa: BLE001 - the caller is told whatever it is; the server goes on
            return write_error(translated(error))

    async def Stream(self, request: pb.Request, context: Any) -> None:  # noqa: N802
        # Written, not yielded: a generator of ours would be closed whenever the collector meets it.
        try:
            verb, arguments = read_request(request)
            check_call(verb, arguments)
            with continued(_read_carried(context)):
                async with aclosing(self._node.stream(verb, *arguments)) as pieces:
                    async for piece in pieces:
                        await context.write(write_answer(piece))
        except asyncio.CancelledError:
            if is_called_off():
                raise
            await context.write(write_error(_GIVEN_UP))
        except Exception as error:  # noqa: BLE001 - as above
            await context.write(write_error(translated(error)))
