"""Machines from the pool of a VM cache server, which another process runs."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Self

from vmfork.config import find_places
from vmfork.config.endpoint import find_endpoint
from vmfork.errors import HostError, VMForkError
from vmfork.factory.kind import Kind
from vmfork.hypervisor.base import Hardware
from vmfork.machine.base import BaseVM
from vmfork.machine.handle import VMHandle
from vmfork.records import read_record
from vmfork.rpc.errors import OtherKind
from vmfork.rpc.packages import open_client

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import FactoryConfig, Places
    from vmfork.rpc.cache_pb2 import ConfigReply
    from vmfork.rpc.client import CacheClient

_log = logging.getLogger(__name__)

# A server whose pool is empty makes a machine: a boot under TCG takes seconds, and callers before us are served first.
TAKE_LIMIT_S = 120.0
# The form in which a server sends its configuration. A server of another version may send another.
_CONFIG_VERSION = 1
_LAST_WORDS_S = 1.0


class RemoteFactory:
    """Owner of a connection to a cache server. Machines it gave are their takers' and need neither of them."""

    def __init__(self, client: CacheClient, reply: ConfigReply) -> None:
        self._client = client
        self._reporting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._learn(reply)

    @classmethod
    async def open(cls, config: FactoryConfig | None = None, *, places: Places | None = None) -> Self:
        """A factory that knows what the server at `config.endpoint` holds (by default the one of `places`).

        `HostError` when no server answers there, or it is another user's, or the extra `server` is not installed.
        """
        path = find_endpoint(config.endpoint if config else "", places or find_places())
        client = open_client(path)
        try:
            return cls(client, await client.config())
        except BaseException:
            await client.aclose()
            raise

    async def refresh(self) -> None:
        """Does nothing: a server that holds machines of another kind refuses to give one for the former kind."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A parked machine of the server's, now ours alone.

        Raises `DeadlineExceeded` when the server had no machine within `timeout_s` (by default two minutes), `Closed`
        when the server ends, `VMNotFound` or `StoreBusy` when the machine could not be taken over (it ends then), and
        `HostError` when the server is gone, or holds machines of another kind now; `kind` is the new one then.
        """
        limit_s = TAKE_LIMIT_S if timeout_s is None else timeout_s
        try:
            reply = await self._client.get_base_vm(timeout_s=limit_s, fingerprint=self.kind.generation)
        except OtherKind:
            self._learn(await self._client.config())
            raise
        # After a cancel or an error here the machine has no owner, and its keeper ends it.
        return await BaseVM.attach(VMHandle.from_json(reply.handle))

    def report(self, *, phases: Mapping[str, float] | None = None, fallback: str = "") -> None:
        """A report is on its way to the server: how long phases of a machine took, or why no machine was taken.

        It is sent in the background. A server that is gone does not get it.
        """
        if self._closed:
            return
        task = asyncio.create_task(self._report(phases or {}, fallback))
        self._reporting.add(task)
        task.add_done_callback(self._reporting.discard)

    async def _report(self, phases: Mapping[str, float], fallback: str) -> None:
        try:
            await self._client.report(phases=phases, fallback=fallback)
        except VMForkError as error:
            _log.info("the VM cache server got no report: %s", error)

    async def aclose(self) -> None:
        """The connection is gone; the server and its machines stay. Reports under way are sent, within a second."""
        self._closed = True
        if self._reporting:
            await asyncio.wait({*self._reporting}, timeout=_LAST_WORDS_S)
        await self._client.aclose()

    def _learn(self, reply: ConfigReply) -> None:
        if reply.config_version != _CONFIG_VERSION:
            raise HostError(
                f"the VM cache server at {self._client.endpoint} tells its configuration in form "
                f"{reply.config_version} (vmfork {reply.server_version}); this vmfork knows {_CONFIG_VERSION}",
                hint="run the same vmfork on both sides",
            )
        try:
            self.kind = Kind(
                name=f"remote {reply.name}",
                image=json.loads(reply.config)["image"],
                traits=dict(reply.traits),
                hardware=read_record(Hardware, reply.hardware),
                generation=reply.fingerprint,
                # The server has counted their memory already.
                shares_memory=True,
                where="server",
                template=reply.template,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(
                f"the VM cache server at {self._client.endpoint} does not say what it holds: {error}",
                hint="run the same vmfork on both sides",
            ) from error
