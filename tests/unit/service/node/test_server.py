"""Servers of a static list over the loopback: who is let in, what is carried, and what programs make of their answers.

The nodes only say that they made a machine (`tests/unit/cluster/fakes.py`); the line, its encryption, the calls and the
front are real.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.certificates import make_authority, make_certificate
from tests.ports import free_port
from tests.recorded_spans import record_spans
from tests.unit.cluster.fakes import FakeNode
from vmfork.cluster import servers as servers_module
from vmfork.cluster.claims import Claims
from vmfork.cluster.cluster import Cluster
from vmfork.cluster.servers import ServerPeers, open_site
from vmfork.cluster.terms import Order, find_version
from vmfork.config import Places
from vmfork.config.servers import Access
from vmfork.errors import (
    Closed,
    ClusterError,
    ConfigError,
    HostError,
    NodeLost,
    NodeRefused,
    NoNode,
    StoreBusy,
    TemplateNotFound,
    VMNotFound,
)
from vmfork.machine import trace
from vmfork.network.policy import Allow
from vmfork.service.node import NodeServer
from vmfork.service.node.server import check_access

TOKEN = Access(token="right")


def order(**options) -> Order:
    return Order(template="py", digest="d", key="k", client="c", options=options)


class ServedNode(FakeNode):
    """Of `exec` it gives as many bytes as it is told to; `wait` ends when it is cancelled, and `pieces` when left."""

    def __init__(self, name: str, **changes) -> None:
        super().__init__(name, **changes)
        self.version = find_version()
        self.claims = Claims()
        self.under_way = asyncio.Event()
        self.ended = asyncio.Event()

    async def claim(self, key: str, node: str, instead_of: str = "") -> str:
        return self.claims.claim(key, node, instead_of=instead_of)

    async def unclaim(self, key: str, node: str) -> None:
        self.claims.release(key, node)

    async def find_key(self, key: str):
        return next((machine for machine in self.machines.values() if machine.key == key), None)

    async def read_file(self, _vm_id: str, path: str, _options) -> bytes:
        if path == "/missing":
            raise VMNotFound("1", "it ended")
        if path == "/bug":
            raise KeyError(path)
        if path == "/given-up":
            shared = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(shared.cancel)
            await asyncio.shield(shared)
        if path == "/wait":
            self.under_way.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        return b"x" * int(path[1:])

    async def stream(self, _verb: str, _vm_id: str, *_args):
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(*nodes: FakeNode, access: Access = TOKEN):
    """The addresses at which the nodes are served, and what ends each server."""
    started, ends = [], []
    for node in nodes:
        server = NodeServer("127.0.0.1:0", access)
        grpc_server = server._make_grpc(node)
        await grpc_server.start()
        started.append(server.address)
        ends.append(grpc_server)
    try:
        yield started, ends
    finally:
        await asyncio.gather(*(each.stop(None) for each in ends))


@asynccontextmanager
async def joined(addresses, access: Access = TOKEN):
    site = await open_site(addresses, access)
    async with Cluster(site) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = make_authority(folder, "ours"), make_authority(folder, "others")
    return {
        "ours": ours.certificate,
        "others": others.certificate,
        "server": make_certificate(folder, "server", ours),
        "caller": make_certificate(folder, "caller", ours),
        "stranger": make_certificate(folder, "stranger", others),
    }


def with_certificate(certificates, name: str, *, ca: str = "ours") -> Access:
    pair = certificates[name]
    return Access(ca=certificates[ca], certificate=pair.certificate, key=pair.key)


async def test_the_token_lets_in_and_no_other() -> None:
    async with serving(ServedNode("a")) as (addresses, _):
        async with joined(addresses) as cluster:
            assert [node["name"] for node in (await cluster.status())["nodes"]] == addresses
        for access, why in ((Access(token="wrong"), "another than ours"), (Access(), "none was given")):
            with pytest.raises(NodeRefused, match=why) as refused:
                await open_site(addresses, access)
            assert refused.value.node == addresses[0]
            assert "right" not in f"{refused.value}{refused.value.hint}"


async def test_a_certificate_of_the_authority_lets_in_and_no_other(certificates) -> None:
    server = with_certificate(certificates, "server")
    async with serving(ServedNode("a"), access=server) as (addresses, _):
        async with joined(addresses, with_certificate(certificates, "caller")) as cluster:
            assert (await cluster.fork("py")).node == addresses[0]
        for access, why in (
            (with_certificate(certificates, "stranger"), "does not take our certificate"),
            (Access(ca=certificates["ours"]), "asks for a certificate"),
            (with_certificate(certificates, "caller", ca="others"), "its certificate is not believed"),
            (Access(token="right"), "speaks TLS alone"),
        ):
            with pytest.raises(NodeRefused, match=why) as refused:
                await open_site(addresses, access)
            assert refused.value.node == addresses[0]


async def test_what_is_no_certificate_or_not_with_its_key_is_named(certificates, tmp_path) -> None:
    text, server, caller = tmp_path / "text", certificates["server"], certificates["caller"]
    text.write_text("no PEM\n")
    ours = certificates["ours"]
    for access, field, says in (
        (Access(ca=str(text)), "ca", "no certificate of an authority"),
        (Access(ca=ours, certificate=server.certificate, key=caller.key), "certificate", "key values mismatch"),
        (Access(ca=ours, certificate=str(text), key=caller.key), "certificate", "no certificate with its key"),
    ):
        with pytest.raises(ConfigError, match=says) as refused:
            await open_site(["127.0.0.1:1"], access)
        assert (refused.value.field, str(refused.value.value) in str(refused.value)) == (field, True)
        if access.certificate:
            with pytest.raises(ConfigError, match=says):
                NodeServer("127.0.0.1:0", access)._make_grpc(ServedNode("a"))


def test_certificates_may_have_words_beside_them_and_be_pipes(certificates) -> None:
    """As authorities of distributions have, and `--cert <(...)` is."""
    pair, contents = certificates["server"], []
    with ExitStack() as stack:
        for path in (certificates["ours"], pair.certificate, pair.key):
            content = Path(path).read_bytes()
            contents.append("# Zertifikate für uns\n".encode() + content if not contents else content)
        paths = []
        for content in contents:
            read, write = os.pipe()
            stack.callback(os.close, read)
            os.write(write, content)
            os.close(write)
            paths.append(f"/proc/self/fd/{read}")
        assert Access(ca=paths[0], certificate=paths[1], key=paths[2]).read() == tuple(contents)


async def test_a_list_that_was_left_does_nothing_more() -> None:
    """A machine that came after would be renewed by nobody."""
    async with serving(ServedNode("a")) as (addresses, _):
        async with joined(addresses) as cluster:
            vm = await cluster.fork("py")
        for work in (cluster.fork("py"), cluster.status(), cluster.find(vm.id), vm.exec(["true"])):
            with pytest.raises(Closed):
                await work
        await cluster.aclose()


async def test_a_server_of_the_list_that_is_down_is_named_with_the_reason() -> None:
    async with serving(ServedNode("a")) as (addresses, _):
        with socket.create_server(("127.0.0.1", 0)) as gone:
            down = f"127.0.0.1:{gone.getsockname()[1]}"
        async with joined([*addresses, down]) as cluster:
            for work in (
                cluster.fork("py", node=down),
                cluster.fork_many("py", 2, node=down),
                cluster.prefetch("py", nodes=[down]),
                cluster.drain(down),
            ):
                with pytest.raises(NoNode, match=f"node '{down}' does not answer: ") as refused:
                    await work
                assert "start it" in refused.value.hint


async def test_a_token_over_an_encrypted_line(certificates) -> None:
    pair = certificates["server"]
    server = Access(ca=certificates["ours"], certificate=pair.certificate, key=pair.key, token="right")
    async with serving(ServedNode("a"), access=server) as (addresses, _):
        async with joined(addresses, Access(ca=certificates["ours"], token="right")) as cluster:
            assert (await cluster.fork("py")).node == addresses[0]
        with pytest.raises(NodeRefused, match="another than ours"):
            await open_site(addresses, Access(ca=certificates["ours"], token="wrong"))


async def test_who_expects_encryption_says_nothing_to_a_server_without(certificates) -> None:
    async with serving(ServedNode("a")) as (addresses, _):
        with pytest.raises(NodeRefused, match="no encrypted line"):
            await open_site(addresses, Access(ca=certificates["ours"], token="right"))


@pytest.mark.parametrize(
    ("address", "access", "why"),
    [
        ("127.0.0.1:0", {}, "anybody"),
        ("0.0.0.0:7300", {"token": "t"}, "could be read"),
        ("[::]:7300", {"token": "t"}, "could be read"),
        ("host.example:7300", {"token": "t", "ca": "x"}, "could be read"),
        ("127.0.0.1:0", {"certificate": "x", "key": "y"}, "anybody"),
        ("nonsense", {"token": "t"}, "not the address"),
    ],
)
def test_nobody_listens_openly_without_saying_so(address, access, why) -> None:
    with pytest.raises(ConfigError, match=why):
        check_access(address, Access(**access))


def test_who_says_so_listens_openly() -> None:
    check_access("0.0.0.0:7300", Access(token="t", plaintext=True))
    check_access("0.0.0.0:7300", Access(token="t", certificate="x", key="y"))
    check_access("0.0.0.0:7300", Access(ca="z", certificate="x", key="y"))


async def test_what_is_raised_and_what_is_large_is_carried() -> None:
    node = ServedNode("a")
    async with serving(node) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        assert len(await peers.call(address, "read_file", "1", "/9000000", {})) == 9_000_000
        with pytest.raises(VMNotFound, match="it ended"):
            await peers.call(address, "read_file", "1", "/missing", {})
        with pytest.raises(ClusterError.__mro__[1], match="KeyError"):
            await peers.call(address, "read_file", "1", "/bug", {})


@pytest.mark.parametrize(
    ("verb", "arguments", "why"),
    [
        ("aclose", (), "does not know"),
        ("exec", ("1", ["true"], {"on_output": None}), "on_output"),
        ("stream_exec", ("1", ["true"], {"stdin": 0}), "does not know|stdin"),
        ("fork", ({},), "no order"),
        ("fork", (order(card="open"),), "reaches"),
        ("fork", (order(card="passt"),), "reaches"),
        ("fork", (order(places=1),), "places"),
        ("fork", (order(network=Allow("127.0.0.1:5432")),), "the host's loopback"),
        ("fork", (order(network=Allow("a.example", "10.1.0.0/16")),), "private"),
        ("fork_vm", ("1", 1, "k", "c", {"card": "open"}), "reaches"),
        ("fork_vm", ("1", 1, "k", "c", {"network": Allow("10.1.0.0/16")}), "private"),
        ("fork_vm", ("1", 1, "k", "c", {"lasting": True}), "lasting"),
        ("fork_vm", ("1", 1, "k", "c", {"places": 1}), "places"),
        ("list_dir", ("1", "/", {"places": 1}), "places"),
    ],
)
async def test_callers_get_machines_and_nothing_of_the_host(verb, arguments, why) -> None:
    node = ServedNode("a")
    async with serving(node) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        with pytest.raises(ConfigError, match=why):
            await peers.call(address, verb, *arguments)
    assert node.made == 0


async def test_a_call_that_is_given_up_ends_on_the_node() -> None:
    node = ServedNode("a")
    async with serving(node) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        task = asyncio.ensure_future(peers.call(address, "read_file", "1", "/wait", {}))
        await node.under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await node.ended.wait()


async def test_a_stream_comes_in_pieces_and_ends_when_it_is_left() -> None:
    node = ServedNode("a")
    async with serving(node) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        pieces = peers.stream(address, "stream_exec", "1", ["true"], {})
        assert [await anext(pieces) for _ in range(3)] == [0, 1, 2]
        await pieces.aclose()
        await node.ended.wait()


async def test_who_waits_for_what_another_gives_up_is_answered() -> None:
    """gRPC says nothing to a call that ends by a cancel of its own."""

    class GivesUp(ServedNode):
        async def stream(self, _verb: str, *args):
            yield 0
            yield await self.read_file("1", "/given-up", {})

    async with serving(GivesUp("a")) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        with pytest.raises(ClusterError, match="given up"):
            await asyncio.wait_for(peers.call(address, "read_file", "1", "/given-up", {}), 30)
        pieces = peers.stream(address, "stream_exec", "1", ["true"], {})
        assert await anext(pieces) == 0
        with pytest.raises(ClusterError, match="given up"):
            await asyncio.wait_for(anext(pieces), 30)


class TracingNode(ServedNode):
    """Whatever it is asked for is a program that has just ended."""

    async def read_file(self, vm_id: str, path: str, options) -> bytes:
        trace.trace_program(path, 0.0, 0)
        return b""

    async def stream(self, _verb: str, _vm_id: str, *_args):
        for number in range(2):
            trace.trace_program(f"piece-{number}", 0.0, 0)
            yield number


async def test_what_a_call_does_there_belongs_to_the_span_that_is_current_here() -> None:
    spans = record_spans()
    tracer = sys.modules["opentelemetry.trace"].get_tracer("test")
    async with serving(TracingNode("a")) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        with tracer.start_as_current_span("caller") as caller:
            await peers.call(address, "read_file", "1", "called", {})
            assert [piece async for piece in peers.stream(address, "stream_exec", "1", ["true"], {})] == [0, 1]
        await peers.call(address, "read_file", "1", "alone", {})
    told = {span.attributes["vmfork.program"]: span for span in spans() if span.name == "vmfork.exec"}
    assert told.keys() == {"called", "piece-0", "piece-1", "alone"}
    assert told.pop("alone").parent is None
    assert {span.parent.span_id for span in told.values()} == {caller.get_span_context().span_id}


async def test_what_is_no_trace_costs_its_caller_the_trace_alone(monkeypatch) -> None:
    spans = record_spans()
    monkeypatch.setattr(servers_module, "carry", lambda: {"traceparent": "00-nonsense", "other": "x", "more-bin": b"x"})
    async with serving(TracingNode("a")) as ((address,), _), ServerPeers((address,), TOKEN) as peers:
        assert await peers.call(address, "read_file", "1", "called", {}) == b""
    (span,) = (span for span in spans() if span.name == "vmfork.exec")
    assert span.parent is None


async def test_a_server_that_ends_is_lost_and_what_was_under_way_too() -> None:
    node = ServedNode("a")
    async with serving(node) as ((address,), (server,)), ServerPeers((address,), TOKEN) as peers:
        task = asyncio.ensure_future(peers.call(address, "read_file", "1", "/wait", {}))
        await node.under_way.wait()
        await server.stop(None)
        with pytest.raises(NodeLost) as lost:
            await task
        assert lost.value.node == address
        with pytest.raises(NodeLost):
            await peers.call(address, "report")


async def test_without_any_server_each_is_named() -> None:
    gone = f"127.0.0.1:{free_port()}"
    with pytest.raises(HostError, match=gone) as refused:
        await open_site([gone], TOKEN)
    assert "vmfork cluster serve" in refused.value.hint


async def test_a_server_that_does_not_answer_is_missing_until_it_does(monkeypatch) -> None:
    monkeypatch.setattr(servers_module, "LOST_AFTER_S", 0.0)
    late = f"127.0.0.1:{free_port()}"
    async with serving(ServedNode("a")) as (addresses, _), joined([*addresses, late]) as cluster:
        told = await cluster.status()
        assert [node["name"] for node in told["nodes"]] == addresses
        assert list(told["missing"]) == [late]
        server = NodeServer(late, TOKEN)._make_grpc(ServedNode("b"))
        await server.start()
        try:
            while (await cluster.status())["missing"]:
                await asyncio.sleep(0.05)
            assert [node["name"] for node in (await cluster.status())["nodes"]] == sorted([*addresses, late])
        finally:
            await server.stop(None)
        while list((told := await cluster.status())["lost"]) != [late]:
            await asyncio.sleep(0.05)
        assert [node["name"] for node in told["nodes"]] == addresses


async def test_one_key_of_two_programs_is_one_machine() -> None:
    nodes = [ServedNode(name) for name in "abc"]
    async with serving(*nodes) as (addresses, _), joined(addresses) as one, joined(addresses[::-1]) as other:
        for number in range(6):
            key = f"key-{number}"
            first, second = await asyncio.gather(one.fork("py", key=key), other.fork("py", key=key))
            assert (first.id, first.node) == (second.id, second.node)
        assert sum(node.made for node in nodes) == 6
        await first.aclose()
        assert (await other.fork("py", key=key)).id != first.id


async def test_the_key_of_a_machine_that_was_closed_leads_to_where_one_is_asked_for_now() -> None:
    nodes = [ServedNode("a", labels={"zone": "west"}), ServedNode("b", labels={"zone": "east"})]
    async with serving(*nodes) as (addresses, _), joined(addresses) as one, joined(addresses) as other:
        vm = await one.fork("py", key="k", node=addresses[0])
        assert (await other.fork("py", key="k", label="zone=east")).id == vm.id  # as long as it lives
        await vm.aclose()
        assert not one._site._claimed
        assert (await one.fork("py", key="k", label="zone=east")).node == addresses[1]
        assert (await other.fork("py", key="k", node=addresses[0])).node == addresses[1]


async def test_two_that_were_made_for_one_key_become_one() -> None:
    """As when the key's home was started anew between two callers, so that it did not know what it had said."""
    nodes = [ServedNode(name) for name in "ab"]
    async with serving(*nodes) as (addresses, _), joined(addresses) as one, joined(addresses) as other:
        first = await one.fork("py", key="k", node=addresses[0])
        twin = await other._site.call(addresses[1], "fork", order())
        assert (await other._settle(twin)).id == first.id
        assert sum(len(node.machines) for node in nodes) == 1


async def test_a_key_whose_node_is_lost_leads_to_another(monkeypatch) -> None:
    monkeypatch.setattr(servers_module, "LOST_AFTER_S", 0.1)
    nodes = [ServedNode(name) for name in "ab"]
    async with serving(*nodes) as (addresses, servers), joined(addresses) as cluster:
        vm = await cluster.fork("py", key="k")
        at = addresses.index(vm.node)
        await servers[at].stop(None)
        with pytest.raises(NodeLost) as lost:
            await vm.exec(["true"])
        assert lost.value.machines == (vm.id,)
        assert (await cluster.fork("py", key="k")).node == addresses[1 - at]


async def test_a_node_that_one_program_drains_gets_nothing_of_another() -> None:
    nodes = [ServedNode(name) for name in "ab"]
    async with serving(*nodes) as (addresses, _), joined(addresses) as one, joined(addresses) as other:
        await one.drain(addresses[0])
        await other.status()
        assert {(await other.fork("py")).node for _ in range(4)} == {addresses[1]}
        await one.undrain(addresses[0])
        await other.status()
        assert (await other.fork("py", node=addresses[0])).node == addresses[0]


async def test_a_handle_finds_its_list_in_the_process_it_was_passed_to() -> None:
    node = ServedNode("a")
    async with serving(node) as (addresses, _), joined(addresses) as cluster:
        vm = pickle.loads(pickle.dumps(await cluster.fork("py")))
        assert (await vm.exec(["true"])).stdout == "a"


async def test_what_is_no_list_of_servers_is_refused() -> None:
    for servers in ([], ["host"], ["host:0"], ["ho st:1"], ["host:70000"]):
        with pytest.raises(ConfigError) as refused:
            await Cluster.at(servers, token="t")
        assert refused.value.field == "servers"
    with pytest.raises(ConfigError, match="plaintext"):
        await Cluster.at(["host:1"], ca="x", plaintext=True)
    with pytest.raises(ConfigError, match="key"):
        await Cluster.at(["host:1"], certificate="x")
    with pytest.raises(ConfigError, match="no/such"):
        await Cluster.at(["host:1"], ca="/no/such")
    with pytest.raises(ConfigError) as refused:
        await Cluster.at(["host:1"], token="se cret")
    assert "cret" not in f"{refused.value!r}{vars(refused.value)}"


async def test_two_servers_do_not_share_a_runtime_folder(tmp_path) -> None:
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    ready = asyncio.get_running_loop().create_future()
    one = NodeServer("127.0.0.1:0", TOKEN, places=places)
    task = asyncio.ensure_future(one.run(on_ready=ready.set_result))
    async with ServerPeers((await ready,), TOKEN) as peers:
        assert isinstance(await peers.call(one.address, "hello"), str)
        with pytest.raises(TemplateNotFound):
            await peers.call(one.address, "artifact", "d")
    with pytest.raises(StoreBusy, match="another server, process"):
        await NodeServer("127.0.0.1:0", TOKEN, places=places).run()
    one.quit()
    await task


async def test_an_address_that_another_has_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HostError, match=address):
            NodeServer(address, TOKEN)._make_grpc(ServedNode("a"))
