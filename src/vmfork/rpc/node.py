"""The client of one node of a static list: messages in, messages out, over a line that is made anew when it breaks."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

import grpc

from vmfork.config.servers import parse_address
from vmfork.errors import Closed, ClusterError, NodeLost, NodeRefused, VMForkError
from vmfork.owner import Owner
from vmfork.rpc.node_pb2_grpc import NodeStub
from vmfork.rpc.runtime import hold_runtime

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from vmfork.config.servers import Access
    from vmfork.rpc import node_pb2 as pb

# A layer, a file, or what a program wrote: each has a limit of its own, far below.
MOST_MESSAGE_BYTES = 1 << 30
# A line that was cut tells nothing: the other end is asked so often, and has so long to answer.
PING_EVERY_S, PING_LIMIT_S = 3, 7
TOKEN_KEY, TOKEN_SCHEME = "authorization", "Bearer "
_PROBE_LIMIT_S = 5.0
_NOT_TAKEN = "it does not take our certificate"
_NONE_GIVEN = "it asks for a certificate, and none was given"
_ONLY_ENCRYPTED = "it speaks TLS alone, and no certificate of an authority was given"

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5000),  # how long a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", PING_EVERY_S * 1000),
    ("grpc.keepalive_timeout_ms", PING_LIMIT_S * 1000),
    # By itself the limit above leaves a host that takes what is sent, and says nothing, a minute (gRPC 1.85).
    ("grpc.http2.ping_timeout_ms", PING_LIMIT_S * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
)


class NodeClient(Owner):
    """Owner of a line to the node at `address`, `HOST:PORT`. Nothing is said before the first call.

    Raises `ConfigError` for files of `access` that cannot be read, and `WrongContext` in a child that was forked from a
    process that used gRPC.
    """

    def __init__(self, address: str, access: Access) -> None:
        hold_runtime()
        self.address = address
        self._access = access
        host, port = parse_address(address)
        target = f"dns:///[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"
        ca, certificate, key = access.read()
        if access.encrypts(address):
            known = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)
            self._channel = grpc.aio.secure_channel(target, known, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub = NodeStub(self._channel)
        self._headers = ((TOKEN_KEY, f"{TOKEN_SCHEME}{access.token}"),) if access.token else ()
        self._closed = False
        self._is_known = False  # that the two ends can speak

    async def call(self, request: pb.Request, carried: Mapping[str, str]) -> pb.Answer:
        """The answer. `carried` goes along as metadata: it is about the call, and no part of it.

        Raises `NodeLost`, `NodeRefused`, `ClusterError`, and `Closed`. On cancel the node is told.
        """
        self._check_open()
        try:
            answer: pb.Answer = await self._stub.Call(request, metadata=(*self._headers, *carried.items()))
            self._is_known = True
        except grpc.aio.AioRpcError as error:
            raise await self._as_ours(error) from error
        except grpc.aio.UsageError as error:  # closed while the call was under way
            raise Closed(f"the line to node {self.address}") from error
        return answer

    async def stream(self, request: pb.Request, carried: Mapping[str, str]) -> AsyncGenerator[pb.Answer, None]:
        """The answers, as they come. `carried` and what is raised are as for `call`.

        Leaving it ends what is under way there.
        """
        self._check_open()
        call = self._stub.Stream(request, metadata=(*self._headers, *carried.items()))
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise await self._as_ours(error) from error
        except grpc.aio.UsageError as error:
            raise Closed(f"the line to node {self.address}") from error
        finally:
            call.cancel()

    async def aclose(self) -> None:
        """The line is gone; calls under way fail."""
        self._closed = True
        await self._channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the line to node {self.address}")

    async def _as_ours(self, error: Any) -> VMForkError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return NodeRefused(self.address, details, hint="give the token that the server was started with")
        # gRPC answers CANCELLED by itself to calls that reached a server which stopped before it looked at them.
        if code is grpc.StatusCode.CANCELLED:
            return (
                Closed(f"the line to node {self.address}") if self._closed else NodeLost(self.address, reason="it ends")
            )
        if code is not grpc.StatusCode.UNAVAILABLE:
            hint = "is it another vmfork, or no node at all?"
            return ClusterError(f"node {self.address}: {code.name}: {details}", hint=hint)
        # A server that wants a certificate closes the line, and gRPC does not say why.
        if not self._is_known and (why := await asyncio.to_thread(self._find_refusal)):
            hint = "compare authority and certificates: --ca, --cert and --key of both ends"
            return NodeRefused(self.address, why, hint=hint)
        return NodeLost(self.address, reason=details)

    def _find_refusal(self) -> str:
        """What keeps the two ends from a line, in words of TLS; empty where nothing of that does."""
        is_encrypted = self._access.encrypts(self.address)
        context = ssl.create_default_context(cafile=self._access.ca or None)
        context.set_alpn_protocols(["h2"])
        if not is_encrypted:
            # Whoever answers a greeting of TLS speaks that alone. Nothing else is said to it.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self._access.certificate:
            context.load_cert_chain(self._access.certificate, self._access.key)
        host, port = parse_address(self.address)
        try:
            with socket.create_connection((host, port), timeout=_PROBE_LIMIT_S) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname=host) as line:
                        return self._look_behind(line) if is_encrypted else _ONLY_ENCRYPTED
                except ssl.SSLError as error:
                    if is_encrypted:
                        return _spell(error)
                    return _ONLY_ENCRYPTED if "ALERT" in (error.reason or "") else ""
        except OSError:
            return ""

    def _look_behind(self, line: ssl.SSLSocket) -> str:
        """Why the server says nothing more: in TLS 1.3 it looks at our certificate after our own last word.

        One that takes it sends its settings at once. gRPC's, which does not, closes the line and gives no reason.
        """
        try:
            if line.recv(1):
                return ""
        except TimeoutError:
            return ""
        except OSError:  # reset, cut, or an alert
            pass
        return _NOT_TAKEN if self._access.certificate else _NONE_GIVEN


def _spell(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    told = (error.reason or str(error)).lower().replace("_", " ")
    return f"no encrypted line can be made: {told}"
