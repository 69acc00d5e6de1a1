"""Machines from the pool of a VM cache server, which another process runs."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from vmfork.config import find_places
from vmfork.config.endpoint import find_endpoint
from vmfork.errors import HostError, VMForkError
from vmfork.factory.kind import Kind
from vmfork.hypervisor.base import Hardware
from vmfork.machine.base import BaseVM
from vmfork.machine.handle import VMHandle
from vmfork.owner import Owner
from vmfork.records import read_record
from vmfork.rpc.errors import OtherKind
from vmfork.rpc.packages import open_client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.config import FactoryConfig, Places
    from vmfork.rpc.cache_pb2 import ConfigReply
    from vmfork.rpc.client import CacheClient

_log = logging.getLogger(__name__)

# A server whose pool is empty makes a machine: a boot under TCG takes seconds, and callers before us are served first.
TAKE_LIMIT_S = 120.0
# The form in which a server sends its configuration. A server of another version may send another.
_CONFIG_VERSION = 1
_LAST_WORDS_S = 1.0


async def open_remote(config: FactoryConfig | None = None, *, places: Places | None = None) -> Sequence[RemoteFactory]:
    """A base for each kind of machine that the server at `config.endpoint` holds (by default the one of `places`).

    Raises `HostError` when no server answers there, or it is another user's, or the extra `server` is missing.
    """
    path = find_endpoint(config.endpoint if config else "", places or find_places())
    server = _Server(open_client(path))
    try:
        reply = await server.client.config()
        return [RemoteFactory(server, server.read_kind(each)) for each in (reply, *reply.others)]
    except BaseException:
        await server.aclose()
        raise


class _Server(Owner):
    """Owner of a connection to a cache server. Machines that came through it are their takers' and do without it."""

    def __init__(self, client: CacheClient) -> None:
        self.client = client
        self._reporting: set[asyncio.Task[None]] = set()
        self._closed = False

    def read_kind(self, reply: ConfigReply) -> Kind:
        """What the server says that it holds. Raises `HostError` when that cannot be read."""
        if reply.config_version != _CONFIG_VERSION:
            raise HostError(
                f"the VM cache server at {self.client.endpoint} tells its configuration in form "
                f"{reply.config_version} (vmfork {reply.server_version}); this vmfork knows {_CONFIG_VERSION}",
                hint="run the same vmfork on both sides",
            )
        try:
            return Kind(
                name=f"remote {reply.name}",
                image=json.loads(reply.config)["image"],
                traits=dict(reply.traits),
                hardware=read_record(Hardware, reply.hardware),
                generation=reply.fingerprint,
                # The server has counted their memory already.
                shares_memory=True,
                where="server",
                template=reply.template,
                recipe=reply.recipe,
                is_warmed=reply.warmed,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(
                f"the VM cache server at {self.client.endpoint} does not say what it holds: {error}",
                hint="run the same vmfork on both sides",
            ) from error

    def report(self, phases: Mapping[str, float], fallback: str) -> None:
        if self._closed:
            return
        task = asyncio.create_task(self._report(phases, fallback))
        self._reporting.add(task)
        task.add_done_callback(self._reporting.discard)

    async def _report(self, phases: Mapping[str, float], fallback: str) -> None:
        try:
            await self.client.report(phases=phases, fallback=fallback)
        except VMForkError as error:
            _log.info("the VM cache server got no report: %s", error)

    async def aclose(self) -> None:
        """The connection is gone; the server and its machines stay. Reports under way are sent, within a second."""
        self._closed = True
        if self._reporting:
            await asyncio.wait({*self._reporting}, timeout=_LAST_WORDS_S)
        await self.client.aclose()


class RemoteFactory:
    """Gives the machines of one kind that a server holds. All of one server share the connection to it."""

    def __init__(self, server: _Server, kind: Kind) -> None:
        self.kind = kind
        self._server = server

    async def refresh(self) -> None:
        """Does nothing: a server that holds machines of another kind refuses to give one for the former kind."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A parked machine of the server's, now ours alone.

        Raises `DeadlineExceeded` when the server had no machine within `timeout_s` (by default two minutes), `Closed`
        when the server ends, `VMNotFound` or `StoreBusy` when the machine could not be taken over (it ends then), and
        `HostError` when the server is gone, or holds machines of another kind now; `kind` is the new one then.
        """
        limit_s = TAKE_LIMIT_S if timeout_s is None else timeout_s
        client = self._server.client
        try:
            reply = await client.get_base_vm(
                timeout_s=limit_s, fingerprint=self.kind.generation, template=self.kind.template
            )
        except OtherKind:
            self._learn(await client.config())
            raise
        # After a cancel or an error here the machine has no owner, and its keeper ends it.
        return await BaseVM.attach(VMHandle.from_json(reply.handle))

    def report(self, *, phases: Mapping[str, float] | None = None, fallback: str = "") -> None:
        """A report is on its way to the server: how long phases of a machine took, or why no machine was taken.

        It is sent in the background. A server that is gone does not get it.
        """
        self._server.report(phases or {}, fallback)

    async def aclose(self) -> None:
        """The connection is gone, for the others of this server too. Reports under way are sent, within a second."""
        await self._server.aclose()

    def _learn(self, reply: ConfigReply) -> None:
        kinds = [self._server.read_kind(each) for each in (reply, *reply.others)]
        # A server that was started anew may hold other templates.
        self.kind = next((kind for kind in kinds if kind.template == self.kind.template), kinds[0])
