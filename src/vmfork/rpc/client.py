"""The client of a VM cache server: calls in, messages out. What becomes of a machine is the caller's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from vmfork.errors import Closed
from vmfork.owner import Owner
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc.cache_pb2_grpc import CacheStub
from vmfork.rpc.endpoint import check_socket
from vmfork.rpc.faults import from_status
from vmfork.rpc.runtime import hold_runtime
from vmfork.rpc.status import ServerStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from pathlib import Path

Request = TypeVar("Request", contravariant=True)  # noqa: PLC0105 - the words of the protocol
Reply = TypeVar("Reply", covariant=True)  # noqa: PLC0105

# Everything but a take is answered from memory.
ANSWER_LIMIT_S = 5.0
# Added to the time a call may take, so that the server's own answer to its end comes before gRPC's.
GRACE_S = 0.5

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # A server that starts again is found again at once, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Not a pause, whatever its name says, but how long a connection may take to be made. 50 ms were too little on a
    # busy host ("connection attempt timed out before receiving SETTINGS frame", gRPC 1.7x).
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # gRPC shares connections between channels of one process unless told not to: closing one would not end it.
    ("grpc.use_local_subchannel_pool", 1),
)


class _Method(Protocol[Request, Reply]):
    """A call of the generated stub, which has no types."""

    def __call__(self, request: Request, /, *, timeout: float) -> Awaitable[Reply]: ...


class CacheClient(Owner):
    """Owner of a connection to the server that listens at `endpoint`. It is made anew when it breaks.

    Raises `WrongContext` in a child that was forked from a process that had one.
    """

    def __init__(self, endpoint: Path) -> None:
        hold_runtime()
        self.endpoint = endpoint
        self._channel = grpc.aio.insecure_channel(f"unix:{endpoint}", options=_OPTIONS)
        self._stub = CacheStub(self._channel)
        self._closed = False

    async def config(self) -> pb.ConfigReply:
        """What machines the server holds."""
        return await self._call(self._stub.Config, pb.ConfigRequest(), "asking for the configuration", ANSWER_LIMIT_S)

    async def get_base_vm(
        self, *, timeout_s: float, ttl_s: float = 0.0, fingerprint: str = "", template: str = ""
    ) -> pb.GetBaseVMReply:
        """A machine that is the caller's alone, to be taken over by its handle.

        With `fingerprint` it is of that kind, with `template` a fork of that template.

        Raises `DeadlineExceeded` when there was no machine within `timeout_s`, `Closed` when the server ends. On cancel
        the machine is not given, or ends by itself.
        """
        client = f"process {os.getpid()}"
        request = pb.GetBaseVMRequest(ttl_s=ttl_s, client=client, fingerprint=fingerprint, template=template)
        return await self._call(self._stub.GetBaseVM, request, "taking a machine from the cache", timeout_s)

    async def status(self) -> ServerStatus:
        """What the server is doing now."""
        reply = await self._call(self._stub.Status, pb.StatusRequest(), "asking for the status", ANSWER_LIMIT_S)
        return ServerStatus.from_json(reply.document, version=reply.document_version)

    async def quit(self) -> int:
        """The server began to drain. Gives its pid: it has ended when its process has."""
        reply = await self._call(self._stub.Quit, pb.QuitRequest(), "asking the server to end", ANSWER_LIMIT_S)
        return int(reply.pid)

    async def report(self, *, vm_id: str = "", phases: Mapping[str, float] | None = None, fallback: str = "") -> None:
        """The server's metrics count what became of a machine, or why no machine was taken."""
        request = pb.ReportRequest(vm_id=vm_id, phases=dict(phases or {}), fallback=fallback)
        await self._call(self._stub.Report, request, "reporting", ANSWER_LIMIT_S)

    async def aclose(self) -> None:
        """The connection is gone; calls under way fail with `Closed`."""
        self._closed = True
        await self._channel.close()

    async def _call(self, method: _Method[Request, Reply], request: Request, operation: str, limit_s: float) -> Reply:
        if self._closed:
            raise Closed("the connection to the VM cache server")
        check_socket(self.endpoint)
        try:
            return await method(request, timeout=limit_s + GRACE_S)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, operation=operation, limit_s=limit_s, endpoint=self.endpoint) from error
        except grpc.aio.UsageError as error:  # closed while the call was under way
            raise Closed("the connection to the VM cache server") from error
