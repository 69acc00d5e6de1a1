"""The one front to many nodes, whatever engine joins them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, overload

from vmfork.border import guarded
from vmfork.cluster.asked import read_fork_options
from vmfork.cluster.joined import load_from_ray
from vmfork.cluster.placement import Constraints
from vmfork.cluster.terms import LISTED, SILENT, Ask, Order
from vmfork.cluster.vm import ClusterVM
from vmfork.config.servers import Access
from vmfork.errors import (
    ArtifactError,
    Closed,
    ClusterError,
    DeadlineExceeded,
    HostError,
    ImageCorrupt,
    NodeLost,
    NoNode,
    NoRoom,
    TemplateCorrupt,
    TemplateNotFound,
    TemplateUnfit,
    VMForkError,
    VMNotFound,
)
from vmfork.late import import_late
from vmfork.machine.several import make_several
from vmfork.owner import Owner, gives_owner
from vmfork.rpc.packages import check_packages

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vmfork.cluster.terms import Decision, Held, Machine, Report, Site
    from vmfork.config import CardChoice
    from vmfork.network.policy import NetworkPolicy
    from vmfork.units import Size
    from vmfork.wire.given import GivenFile, HostPath

_log = logging.getLogger("vmfork")

# A third of the time after which a node ends the machines of a program that it has not heard of.
_RENEW_EVERY_S = 10.0
# So long a node may take for that: one that is cut off keeps no other from hearing of us.
_RENEW_LIMIT_S = 10.0
# So long, and of so many machines, it is kept in mind what a node that could not be asked may have made for nobody.
_OWED_S = 3600.0
_MOST_OWED = 1000
# A node that ends is told as ended some seconds later; so long it is asked again, from its first loss on.
_LOST_LIMIT_S = 60.0
_AGAIN_S = 0.5
_CLOSE_LIMIT_S = 30.0
# Whoever leaves the cluster tries so long to tell nodes what they have for nobody.
_LAST_WORDS_S = 5.0
# What a node says that cannot make the machine, where another may.
_REFUSALS = (TemplateUnfit, TemplateNotFound, NoNode)
# What keeps a template from a node: memory, a budget, a disk, or what it was sent.
_NOT_BROUGHT = (HostError, ArtifactError, TemplateCorrupt, ImageCorrupt)
# Forks that are asked for at once. Nodes have their own limits.
_AT_ONCE = 8


@guarded
class Cluster(Owner):
    """Many nodes as one factory.

    `connect` joins the Ray cluster that this process is in, `local` starts one here, and `at` joins a list of servers.
    """

    def __init__(self, site: Site) -> None:
        self._joined = site
        self._has_left = False
        # The nodes that are told that we live: since when one does not answer, or 0.
        self._nodes: dict[str, float] = {}
        # By node, key and ticket of what it may have made for us, who have another; until when that is kept in mind.
        self._owed: dict[tuple[str, str, str], float] = {}
        # By ticket: the key of what is being asked for, and the nodes that may make it.
        self._asking: dict[str, tuple[str, set[str]]] = {}
        self._renewing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Cluster over {self._joined!r}>"

    @property
    def _site(self) -> Site:
        self._check_joined()
        return self._joined

    def _check_joined(self) -> None:
        if self._has_left:
            raise Closed("the cluster", hint="join it again: vmfork.Cluster.connect(), or Cluster.at()")

    @classmethod
    @gives_owner
    async def connect(cls, address: str = "auto") -> Cluster:
        """The Ray cluster at `address`, by default the one that this process, or this host, belongs to.

        On each of its nodes that has vmfork one actor begins to serve. Raises `HostError` where Ray is not installed,
        or no cluster can be joined there, within a minute, and `ConfigError` for what is no address.
        """
        return cls(await _join(address))

    @classmethod
    @gives_owner
    async def local(cls) -> Cluster:
        """A Ray cluster of one node on this host, which ends with the block. Raises `HostError` without Ray."""
        return cls(await _join("local"))

    @classmethod
    @gives_owner
    async def at(
        cls,
        servers: Sequence[str],
        *,
        token: str = "",
        ca: HostPath = "",
        certificate: HostPath = "",
        key: HostPath = "",
        plaintext: bool = False,
    ) -> Cluster:
        """The servers at these addresses, `HOST:PORT`, as one cluster: `vmfork cluster serve` is one.

        They let in who has their `token`, or a `certificate` (with its `key`) of their authority. Theirs is believed by
        the authority in `ca`, by default by those that gRPC brings; all three are files in PEM. What
        is said is encrypted, but on the loopback where neither is given, or everywhere with `plaintext`: then the token
        can be read on its way. All programs give the same list: it says who tells which node has the machine of a key.
        Servers that do not answer may come later.

        Raises `NodeRefused` where a server lets us not in or is not believed, `HostError` where none answers or gRPC is
        not installed, and `ConfigError`.
        """
        access = Access(
            token=token, ca=os.fspath(ca), certificate=os.fspath(certificate), key=os.fspath(key), plaintext=plaintext
        )
        check_packages()
        # gRPC takes 60 ms to load.
        found: Site = await import_late("vmfork.cluster.servers", "open_site")(servers, access)
        return cls(found)

    @gives_owner
    async def fork(
        self,
        template: str,
        *,
        key: str = "",
        label: str = "",
        node: str = "",
        spread: str = "",
        lasts: bool = False,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float = 60.0,
    ) -> ClusterVM:
        """A machine of the template, on a node that has it, or that it was brought to. As `Template.fork`.

        The same `key` gives the same machine as long as that lives, and else a new one: never two on nodes that can be
        reached. It is on a node that has the `label` (`KEY=VALUE` or `KEY`), on `node`, or, with `spread` (`node`, or
        the key of a label), where the fewest of its template are. It ends within 40 s when this program does,
        unless it `lasts`: then it ends by its time to live, or when it is closed. Without room anywhere, room is waited
        for, `wait_s` seconds at most, behind whoever came before. When a node ends meanwhile, another makes the
        machine. What programs in it fork by `vmfork_guest.fork()` is on its node, ends with it, and is no machine that
        the cluster tells of.

        Raises `TemplateNotFound` for one that no node has, `NoNode` when no node can have it, saying why, `NoRoom`, and
        what `Template.fork` raises. After any of them, and on cancel, nothing is left.
        """
        options = await read_fork_options(
            files, env=env, cpus=cpus, memory_mib=memory_mib, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s, network=network,
            card=card, disk=disk, allow_guest_fork=allow_guest_fork, timeout_s=timeout_s,
        )  # fmt: skip
        constraints = Constraints(label=label, node=node, spread=spread)
        return await self._fork(template, options, constraints, key=key, lasts=lasts, wait_s=wait_s)

    @overload
    async def fork_many(
        self,
        template: str,
        count: int,
        *,
        label: str = "",
        node: str = "",
        spread: str = "",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float = 60.0,
        partial: Literal[False] = False,
    ) -> Sequence[ClusterVM]: ...

    @overload
    async def fork_many(
        self,
        template: str,
        count: int,
        *,
        label: str = "",
        node: str = "",
        spread: str = "",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float = 60.0,
        partial: bool,
    ) -> Sequence[ClusterVM | VMForkError]: ...

    async def fork_many(
        self,
        template: str,
        count: int,
        *,
        label: str = "",
        node: str = "",
        spread: str = "",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float = 60.0,
        partial: bool = False,
    ) -> Sequence[ClusterVM | VMForkError]:
        """`count` machines, each as `fork` gives it, made several at a time.

        When one fails, all are closed and its error is raised, with those of others in `siblings`. With `partial` those
        that could be had are given, and behind them the errors. Raises `NoNode` at once where no node can have one, and
        for more than the nodes could have if they had no others.
        """
        options = await read_fork_options(
            files, env=env, cpus=cpus, memory_mib=memory_mib, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s, network=network,
            card=card, disk=disk, allow_guest_fork=allow_guest_fork, timeout_s=timeout_s,
        )  # fmt: skip
        constraints = Constraints(label=label, node=node, spread=spread)
        await self._site.ask("check_many", template, count, constraints)
        failures: list[VMForkError] | None = [] if partial else None

        async def fork_one() -> ClusterVM:
            return await self._fork(template, options, constraints, wait_s=wait_s)

        vms = await make_several(count, fork_one, close=_close, failures=failures, at_once=_AT_ONCE)
        return [*vms, *(failures or ())]

    async def prefetch(self, template: str, *, nodes: Sequence[str] | None = None) -> Sequence[str]:
        """The template is on these nodes, by default on all that it fits; gives those that it was brought to.

        Machines that are asked for from now on are placed on all of them. Where none was named, nodes that it does not
        fit, or that have no room for it, are left out.
        Raises `TemplateNotFound`, `NoNode` for a node that is not there, and, for a node that was named, what keeps the
        template from it, once the others have it.
        """
        targets = await self._site.ask("find_targets", template, nodes)
        failures: list[VMForkError] = []

        async def pull(node: str, digest: str, sources: Sequence[str]) -> str:
            try:
                await self._site.call(node, "pull", template, digest, sources)
            except VMForkError as error:
                _log.warning("template %s was not brought to node %s: %s", template, node, error)
                failures.append(error)
                return ""
            return node

        brought = [node for node in await asyncio.gather(*(pull(*target) for target in targets)) if node]
        if brought:
            await self._site.ask("look")  # the nodes tell of it themselves, but up to a second later
        if failures and nodes is not None:
            raise failures[0]
        return brought

    async def drain(self, node: str, *, timeout_s: float = 3600.0) -> None:
        """The node has no machine of the cluster, and gets none; what templates it alone had another has, too.

        Raises `NoNode` for one that is not there. Raises `DeadlineExceeded` where machines still run there after
        `timeout_s` seconds, and `ClusterError` with the names of templates that no other node takes, once it has no
        machine; the node gets none all the same.
        """
        await self._move_templates(node)  # while machines run there
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (report := await self._site.call(node, "report")).machines or report.asked:
            if asyncio.get_running_loop().time() >= deadline:
                raise DeadlineExceeded(f"draining node {node}", timeout_s, hint="close its machines")
            await asyncio.sleep(0.2)  # its machines end without telling us
        # What came meanwhile, or what whoever had it too has no more.
        if stay := await self._move_templates(node):
            raise ClusterError(
                f"node {node} is drained, and alone has {', '.join(stay)}, which no other node takes",
                hint="keep them before it goes (vmfork template save), or add a node that they fit and drain again",
            )

    async def _move_templates(self, node: str) -> Sequence[str]:
        """The node is drained, and what no other has another takes over; the names of those that none takes."""
        alone = await self._site.ask("drain", node)
        told = await self._site.ask("tell")
        others = [
            name
            for name, report in told["reports"].items()
            if name != node and not report.offer.is_draining and not report.offer.hindrance
        ]
        return [name for name, digest, sources in alone if not await self._save(name, digest, sources, others)]

    async def _save(self, template: str, digest: str, sources: Sequence[str], nodes: Sequence[str]) -> bool:
        """Whether one of the nodes has taken the template over."""
        for node in nodes:
            with suppress(VMForkError):  # it does not fit there, or has no room
                await self._site.call(node, "pull", template, digest, sources)
                return True
        return False

    async def undrain(self, node: str) -> None:
        """The node gets machines again."""
        await self._site.ask("undrain", node)

    async def status(self) -> Mapping[str, Any]:
        """What the nodes have now, as JSON would have it: `nodes`, `templates`, `machines`, and what was `lost`.

        By the names of nodes, whichever answered first. `missing` are servers of the list that do not answer, and why.
        """
        told = await self._site.ask("tell")
        reports = [report for _, report in sorted(told["reports"].items())]
        templates: dict[tuple[str, str], dict[str, Held]] = defaultdict(dict)
        for report in reports:
            for held in report.held:
                templates[held.name, held.wanted.digest][report.offer.name] = held
        return {
            "nodes": [_tell_node(report) for report in reports],
            "templates": [_tell_template(templates[each]) for each in sorted(templates)],
            "machines": [
                {"id": m.id, "node": m.node, "template": m.template, "key": m.key, "lasts": m.lasts,
                 "created_at": m.created_at}
                for report in reports for m in report.machines
            ],
            "lost": {node: [*ids] for node, ids in told["lost"].items()},
            "missing": dict(self._site.missing),
        }  # fmt: skip

    async def find(self, vm: str) -> ClusterVM:
        """A handle to the machine of that id or key, whoever asked for it. Raises `VMNotFound` when none has it."""
        told = await self._site.ask("tell")
        # What a node has that is cut off may have been made anew by another.
        for report in sorted(told["reports"].values(), key=lambda each: each.offer.hindrance == SILENT):
            for machine in report.machines:
                if vm in (machine.id, machine.key):
                    self._begin_renewing(machine.node)  # it may be forked
                    return ClusterVM(machine, self._site)
        raise VMNotFound(vm, "no node has a machine of that id or key", hint=LISTED)

    async def aclose(self) -> None:
        """We have left the cluster. Machines that were not closed, and do not last, end within 40 s.

        Where this process is in the Ray cluster otherwise, by `ray.init` or as a task of it, they end with the program.
        """
        self._has_left = True
        if self._renewing is not None:
            self._renewing.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewing
        for ticket, (key, asked) in self._asking.items():
            self._owe(asked, key, ticket)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await asyncio.gather(*(self._pay(*debt) for debt in [*self._owed]), return_exceptions=True)
        await self._joined.aclose()

    async def _fork(
        self,
        template: str,
        options: Mapping[str, Any],
        constraints: Constraints,
        *,
        key: str = "",
        lasts: bool = False,
        wait_s: float,
    ) -> ClusterVM:
        ticket = uuid.uuid4().hex
        own_key = key or ticket
        asked: set[str] = set()
        self._asking[ticket] = own_key, asked
        try:
            machine = await self._ask_nodes(
                template, options, constraints, own_key, ticket, asked, lasts=lasts, wait_s=wait_s
            )
            if key:
                machine = await self._settle(machine)
            self._check_joined()  # whoever left meanwhile has given it up
        except BaseException:
            if asked:
                await self._give_up(asked, own_key, ticket)
            raise
        finally:
            del self._asking[ticket]
        self._owe(asked - {machine.node}, own_key, ticket)
        return ClusterVM(machine, self._joined)

    async def _ask_nodes(
        self,
        template: str,
        options: Mapping[str, Any],
        constraints: Constraints,
        key: str,
        ticket: str,
        asked: set[str],
        *,
        lasts: bool,
        wait_s: float,
    ) -> Machine:
        """What a node has made. In `asked`, also after an error, are nodes that have made it, or may have."""
        site = self._site  # who leaves the cluster meanwhile is told by what it carries
        avoid: frozenset[str] = frozenset()
        failed: VMForkError | None = None
        losses: dict[str, float] = {}
        while True:
            ask = Ask(template=template, key=key, constraints=constraints, avoid=avoid, is_shared=key != ticket)
            try:
                decision: Decision = await site.ask("place", ask)
            except NoNode as error:
                if failed is not None:
                    raise failed from None
                if SILENT not in error.reasons or _is_too_late(losses, ""):
                    raise
                await asyncio.sleep(_AGAIN_S)  # its process may be on its way back
                await site.ask("look")
                continue
            order = Order(
                template=template, digest=decision.digest, created_at=decision.created_at, key=key, client=site.client,
                ticket=ticket, sources=decision.sources, lasts=lasts, wait_s=wait_s, options=options,
            )  # fmt: skip
            self._begin_renewing(decision.node)
            asked.add(decision.node)
            try:
                machine: Machine = await site.call(decision.node, "fork", order)
            except NodeLost as error:
                if _is_too_late(losses, decision.node):
                    raise
                if error.is_cut and error.node == decision.node:  # that it had the machine of the key counts no more
                    failed, avoid = error, avoid | {decision.node}
                await site.ask("release", key)
                await asyncio.sleep(_AGAIN_S)  # nobody tells when its process is back, or that it never will be
                # Where its process alone has ended, and comes back, it tells whether it still has the machine.
                await site.ask("look")
            except VMForkError as error:
                if not isinstance(error, _REFUSALS) and not (decision.is_brought and _was_not_brought(error)):
                    raise
                asked.discard(decision.node)
                failed, avoid = error, avoid | {decision.node}
                await site.ask("release", key)
            else:
                return machine

    async def _settle(self, machine: Machine) -> Machine:
        """The machine that counts; where another was made for the same key before, ours is gone."""
        known: Machine = await self._joined.ask("settle", machine)
        if known.id != machine.id:
            with suppress(NodeLost):  # it is owed to its node then
                await ClusterVM(machine, self._joined).aclose()
        return known

    async def _give_up(self, nodes: Collection[str], key: str, ticket: str) -> None:
        """Nothing is made for us any more, as far as the nodes can be asked. Others who asked by the key have theirs.

        What cannot be asked is asked when it can be again.
        """
        self._owe(nodes, key, ticket)

        async def give_up() -> None:
            await asyncio.gather(*(self._pay(node, key, ticket) for node in nodes))
            await self._joined.ask("release", key)

        with suppress(VMForkError, TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(give_up())), _CLOSE_LIMIT_S)

    def _owe(self, nodes: Collection[str], key: str, ticket: str) -> None:
        """The nodes are to be told that nothing of theirs is wanted for the ticket."""
        for node in nodes:
            self._owed[node, key, ticket] = time.monotonic() + _OWED_S
        while len(self._owed) > _MOST_OWED:
            del self._owed[next(iter(self._owed))]

    async def _pay(self, node: str, key: str, ticket: str) -> None:
        """The node was told, unless it cannot be: then later."""
        if (node, key, ticket) not in self._owed:
            return
        try:
            await self._joined.call(node, "drop", key, ticket)
        except (NodeLost, Closed):
            return
        except VMForkError as error:  # it would say so again
            _log.warning("node %s may have a machine of nobody's: %s", node, error)
        self._owed.pop((node, key, ticket), None)

    def _begin_renewing(self, node: str) -> None:
        self._nodes.setdefault(node, 0.0)
        if self._renewing is None:
            self._renewing = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        """Nodes hear of us, so that our machines live."""
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            now = time.monotonic()
            self._owed = {debt: until for debt, until in self._owed.items() if until > now}
            nodes = {*self._nodes, *(node for node, _, _ in self._owed)}
            told = await asyncio.gather(*map(self._renew_at, nodes), return_exceptions=True)
            if any(isinstance(each, Closed) for each in told):
                return  # what carries calls has ended, and our machines end by themselves

    async def _renew_at(self, node: str) -> None:
        """The node has heard of us. One that is lost is asked again for some time: it may only be cut off."""
        try:
            async with asyncio.timeout(_RENEW_LIMIT_S):
                if node in self._nodes:
                    await self._site.call(node, "renew", self._site.client)
                    self._nodes[node] = 0.0
                for debt in [debt for debt in self._owed if debt[0] == node]:
                    await self._pay(*debt)
        except NodeLost:
            now = time.monotonic()
            since = self._nodes.get(node, 0.0) or now
            if now - since >= _LOST_LIMIT_S:
                self._nodes.pop(node, None)
            elif node in self._nodes:
                self._nodes[node] = since
        except TimeoutError:
            pass


def _was_not_brought(error: VMForkError) -> bool:
    """Whether the template may have been kept from the node. Whoever waits for room there waits once."""
    return isinstance(error, _NOT_BROUGHT) and not isinstance(error, NoRoom)


async def _join(address: str) -> Site:
    found: Site = await load_from_ray("ray_joining", "open_site")(address)
    return found


def _is_too_late(losses: dict[str, float], node: str) -> bool:
    """Whether the node was found lost first so long ago that it is not asked again."""
    now = time.monotonic()
    return now - losses.setdefault(node, now) >= _LOST_LIMIT_S


async def _close(vm: ClusterVM) -> None:
    await vm.aclose()


def _tell_template(held_by: Mapping[str, Held]) -> dict[str, Any]:
    # A node that has packed it knows what it travels as, in layers; others tell how much memory it is, as one.
    held = max(held_by.values(), key=lambda held: len(held.wanted.layers))
    return {
        "name": held.name,
        "digest": held.wanted.digest,
        "created_at": held.created_at,
        "size_bytes": held.wanted.size_bytes,
        "nodes": [*held_by],
    }


def _tell_node(report: Report) -> dict[str, Any]:
    offer = report.offer
    return {
        "name": offer.name,
        "labels": dict(offer.labels),
        "emulators": sorted(offer.emulators),
        "accels": sorted(offer.accels),
        "templates": len(offer.templates),
        "machines": len(report.machines),
        "pooled": sum(offer.pooled.values()),
        "being_made": len(report.asked),
        "waiting": offer.waiting,
        "total_mib": offer.total_mib,
        "to_give_mib": offer.to_give_mib,
        "load": offer.load,
        "counts": dict(report.counts),
        "state": offer.hindrance or ("draining" if offer.is_draining else offer.strained or "ready"),
    }
