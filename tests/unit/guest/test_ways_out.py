"""Ways out of a guest, which here is the host itself: what is let through, what is not, and what either is told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.timing import with_more_time
from tests.unit.guest.test_ports import LIMIT_S, connect, echo, served
from vmfork.network import ways
from vmfork.network.gate import Gate
from vmfork.network.names import Names
from vmfork.network.pace import Pace
from vmfork.network.policy import Allow
from vmfork.network.proxy import Proxy
from vmfork.network.variables import proxy_env
from vmfork.network.ways import Ways

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from vmfork.agent.client import AgentClient
    from vmfork.network.policy import NetworkPolicy

TELLING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Answering:
    """A resolver that answers from a table, and keeps what it was asked."""

    def __init__(self, **table: Sequence[str]) -> None:
        self.table = {name.replace("_", "."): addresses for name, addresses in table.items()}
        self.asked: list[str] = []

    def __call__(self, name: str, _port: int) -> Sequence[str]:
        self.asked.append(name)
        if name not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self.table[name]


HERE = ("127.0.0.1",)


@asynccontextmanager
async def proxied(
    agent: AgentClient,
    policy: NetworkPolicy,
    look_up: Answering | None = None,
    *,
    head_s: float = LIMIT_S,
    pace: Pace | None = None,
) -> AsyncIterator[tuple[int, Gate]]:
    """A proxy's port, and what decides behind it."""
    gate = Gate(policy, look_up=look_up or Answering(api_test=HERE), pace=pace)
    port = free_port()
    async with Proxy(agent, port, listening=await agent.listen(port), gate=gate, head_s=head_s):
        yield port, gate
    gate.close()


async def ask(port: int, data: bytes, *, ends: bool = False) -> bytes:
    """All that comes back until the connection ends, in whatever way.

    By a socket: a `StreamReader` that is told of a reset no longer gives what came before it.
    """
    loop, answer = asyncio.get_running_loop(), b""
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        with suppress(OSError):  # it may be let go before it has said all
            await loop.sock_sendall(client, data)
            if ends:
                client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(loop.sock_recv(client, 65536), LIMIT_S):
                answer += piece
    return answer


def told(answer: bytes) -> tuple[int, str]:
    """Status and reason of an answer, whose content says the same."""
    head, _, body = answer.partition(b"\r\n\r\n")
    _, status, reason = head.split(b"\r\n")[0].split(b" ", 2)
    assert body in {reason + b"\n", b"ok"}
    return int(status), reason.decode()


class Service:
    """Answers each request with `ok`, or as it is told, once what was sent `ends_with` that. Keeps what it was sent."""

    def __init__(self, answer: bytes = TELLING, *, ends_with: bytes = b"\r\n\r\n") -> None:
        self.answer = answer
        self.ends_with = ends_with
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(self.ends_with))
            writer.write(self.answer)
            await writer.drain()


def here(port: int, *more: str) -> Allow:
    return Allow(f"api.test:{port}", f"127.0.0.1:{port}", *more)


async def test_a_tunnel_leads_to_an_allowed_name_and_to_nothing_else(agent) -> None:
    look_up = Answering(api_test=HERE, evil_test=HERE)
    async with served(echo) as port, proxied(agent, here(port), look_up) as (proxy, gate):
        reader, writer = await connect(proxy)
        writer.write(b"CONNECT API.test:%d HTTP/1.1\r\nHost: evil.test\r\n\r\nfirst" % port)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connected\r\n\r\n"
        assert await reader.readexactly(5) == b"first"
        writer.write(b"x" * 300_000)
        writer.write_eof()
        assert await reader.read() == b"x" * 300_000
        writer.close()
        for target, why in (
            (f"evil.test:{port}", "evil.test is not in the list"),
            ("api.test:1", f"port 1 of api.test is not in the list, which has {port}"),
            ("127.0.0.2:80", "127.0.0.2 is the host's loopback: name the address itself to allow it"),
            ("[::ffff:127.0.0.2]:80", "127.0.0.2 is the host's loopback: name the address itself to allow it"),
        ):
            answer = told(await ask(proxy, f"CONNECT {target} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode()))
            assert answer == (403, f"vmfork: {why}")
        assert told(await ask(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n" % free_port()))[0] == 403
        # A name that may not be reached is not looked up: by names alone much can be told.
        assert look_up.asked == ["api.test"]
        counts = gate.counts
        assert (counts.allowed, counts.denied, counts.open) == (1, 5, 0)
        assert (counts.sent_bytes, counts.received_bytes) == (300_005, 300_005)
        first = gate.log[0]
        assert (first.host, first.port, first.address, first.allowed, first.why) == (
            "api.test", port, "127.0.0.1", True, f"api.test:{port}",
        )  # fmt: skip
        assert str(gate.log[1]) == f"evil.test:{port} denied: evil.test is not in the list"


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "10.0.0.1"])
@pytest.mark.parametrize("policy", [Allow("api.test:80"), Allow("*.a.test:80", "api.test:80", "127.0.0.1:81"), "all"])
async def test_an_allowed_name_that_leads_to_a_forbidden_address_is_denied(agent, address: str, policy) -> None:
    look_up = Answering(api_test=[address])
    async with proxied(agent, policy, look_up) as (proxy, gate):
        status, why = told(await ask(proxy, b"CONNECT api.test:80 HTTP/1.1\r\nHost: a\r\n\r\n"))
        assert (status, why.startswith("vmfork: api.test leads to "), "name the address" in why) == (403, True, True)
        assert [(each.allowed, ip_address(each.address)) for each in gate.log] == [(False, ip_address(address))]


async def test_a_name_that_changes_between_check_and_use_is_looked_up_once(agent) -> None:
    class Changing(Answering):
        def __call__(self, name: str, port: int) -> Sequence[str]:
            super().__call__(name, port)
            return ["127.0.0.1"] if len(self.asked) == 1 else ["127.0.0.2"]

    look_up = Changing(api_test=HERE)
    async with served(echo) as port, proxied(agent, here(port), look_up) as (proxy, gate):
        request = b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\nhi" % port
        assert (await ask(proxy, request, ends=True)).endswith(b"\r\n\r\nhi")
        assert look_up.asked == ["api.test"]
        # The second time it leads elsewhere, and is denied for that.
        assert told(await ask(proxy, request, ends=True))[0] == 403
        assert [each.address for each in gate.log] == ["127.0.0.1", "127.0.0.2"]


async def test_of_several_addresses_the_forbidden_are_left_out(agent) -> None:
    look_up = Answering(api_test=("169.254.169.254", "127.0.0.1"))
    async with served(echo) as port, proxied(agent, here(port), look_up) as (proxy, gate):
        request = b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\nhi" % port
        assert (await ask(proxy, request, ends=True)).endswith(b"hi")
        assert gate.log[0].address == "127.0.0.1"


async def test_each_request_of_a_kept_connection_is_judged_and_its_host_is_the_targets(agent) -> None:
    service = Service()
    async with served(service) as port, proxied(agent, here(port)) as (proxy, gate):
        allowed = b"GET http://api.test:%d/a?b#c HTTP/1.1\r\nHost: evil.test\r\nProxy-Connection: keep-alive\r\n"
        allowed += b"Connection: X-Secret, content-length, host\r\nX-Secret: 1\r\nX-Kept: 2\r\n\r\n"
        denied = b"GET http://evil.test:%d/ HTTP/1.1\r\nHost: api.test\r\n\r\n"
        reader, writer = await connect(proxy)
        for _ in range(2):
            writer.write(allowed % port)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(2) == b"ok"
        writer.write(denied % port)
        assert told(await reader.read()) == (403, "vmfork: evil.test is not in the list")
        writer.close()
        wanted = b"GET /a?b HTTP/1.1\r\nHost: api.test:%d\r\nX-Kept: 2\r\nConnection: close\r\n\r\n" % port
        assert service.heads == [wanted.replace(b"X-Kept", b"x-kept")] * 2 or service.heads == [wanted] * 2
        assert [each.allowed for each in gate.log] == [True, True, False]
        # Sent together, they are answered one after the other, up to the one that is denied.
        answer = await ask(proxy, (allowed + denied + allowed) % (port, port, port))
        assert (answer.count(b"HTTP/1.1 200"), answer.count(b"HTTP/1.1 403")) == (1, 1)
        assert len(service.heads) == 3


async def test_content_goes_both_ways_in_pieces(agent) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    head = b"POST http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    service = Service(chunked, ends_with=b"\r\n0\r\n\r\n")
    async with served(service) as port, proxied(agent, here(port)) as (proxy, _):
        answer = await ask(proxy, head % port + b"3\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n", ends=True)
        assert answer.endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        assert service.heads[0].endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    async with served(Service(chunked)) as port, proxied(agent, here(port)) as (proxy, _):
        empty = await ask(proxy, b"HEAD http://api.test:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % port, ends=True)
        assert empty.endswith(b"\r\n\r\n")
        old = await ask(proxy, b"GET http://api.test:%d HTTP/1.0\r\n\r\n" % port)
        assert old.endswith(b"\r\n\r\nok")
        # The rest of a request whose answer has come is not waited for.
        assert (await ask(proxy, head % port)).endswith(b"2\r\nok\r\n0\r\n\r\n")


async def test_who_sends_on_when_he_asks_and_who_waits_until_he_may(agent) -> None:
    async def ask_for_content(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Expect: 100-continue" in (await reader.readuntil(b"\r\n\r\n")).replace(b"expect", b"Expect")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(3) == b"abc"
        writer.write(TELLING)

    async with served(ask_for_content) as port, proxied(agent, here(port)) as (proxy, _):
        reader, writer = await connect(proxy)
        writer.write(b"PUT http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" % port)
        writer.write(b"Content-Length: 3\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"abc")
        writer.write_eof()
        assert (await reader.read()).endswith(b"ok")
        writer.close()


async def test_a_host_that_refuses_is_lost_or_speaks_something_else_is_a_bad_gateway(agent) -> None:
    nobody = free_port()
    for answer in (b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal"):
        async with served(Service(answer)) as port:
            policy = here(port, f"api.test:{nobody}", f"127.0.0.1:{nobody}", "gone.test:80")
            async with proxied(agent, policy) as (proxy, gate):
                got = await ask(proxy, b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % port)
                if b"hal" in answer:
                    assert got.endswith(b"hal")  # and then it was reset, as its reader sees by the length
                else:
                    assert told(got)[0] == 502
                for target, why in (
                    (f"api.test:{nobody}", "refused the connection"),
                    ("gone.test:80", "leads to no address"),
                ):
                    status, said = told(await ask(proxy, f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()))
                    assert (status, why in said, why in gate.log[-1].why) == (502, True, True)


SMUGGLED = {
    "two lengths": (
        b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "two different lengths": (
        b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
    ),
    "a tunnel with content": b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "a tunnel in pieces": b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an odd coding": b"POST http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n",
    "a user": b"CONNECT api.test:%d@evil.test:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user before": b"CONNECT evil.test:80@api.test:%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user in a url": b"GET http://api.test:%d@evil.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a backslash": b"GET http://evil.test\\@api.test:%d/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path": b"CONNECT api.test:%d/../evil.test HTTP/1.1\r\nHost: a\r\n\r\n",
    "no port": b"CONNECT api.test HTTP/1.1\r\nHost: a%d\r\n\r\n",
    "a zone": b"CONNECT [fe80::1%%25eth%d]:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a port too large": b"CONNECT api.test:6553600%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "an encoded name": b"GET http://%%61pi.test:%d/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a name with a zero": b"CONNECT api.test\0.evil.test:%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "two hosts": b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a fold": b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\nX: \r\n\0 b\r\n\r\n",
    "a bare path": b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "another scheme": b"GET https://api.test:%d/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a number for an address": b"CONNECT 2130706433:%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "an octal address": b"CONNECT 0177.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "no protocol": b"GET http://api.test:%d/\r\n\r\n",
    "TLS to the proxy": b"\x16\x03\x01%d\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_could_be_read_in_two_ways_is_refused_and_reaches_nobody(agent, name: str) -> None:
    service = Service()
    async with served(service) as port, proxied(agent, here(port)) as (proxy, gate):
        status, said = told(await ask(proxy, SMUGGLED[name] % port))
        assert (400 <= status <= 501, status != 403, bool(said)) == (True, True, True)
        assert service.heads == []
        assert not any(each.allowed for each in gate.log)


@pytest.mark.parametrize("head", [b"X: " + b"a" * 100_000, b"X: b\r\n" * 20_000])
async def test_a_head_of_a_hundred_thousand_bytes_is_too_large(agent, head: bytes) -> None:
    service = Service()
    async with served(service) as port, proxied(agent, here(port)) as (proxy, _):
        request = b"GET http://api.test:%d/ HTTP/1.1\r\nHost: a\r\n" % port + head + b"\r\n\r\n"
        assert told(await ask(proxy, request))[0] == 431
        assert service.heads == []


@pytest.mark.parametrize(
    "beginning", [b"", b"GET http://api.te", b"\x05", b"\x05\x01\x00", b"CONNECT a.test:1 HTTP/1.1\r\nX"]
)
async def test_who_says_what_he_wants_too_slowly_is_let_go(agent, beginning: bytes) -> None:
    async def dally(limit_s: float) -> None:
        async with proxied(agent, Allow("api.test"), head_s=limit_s) as (proxy, gate):
            answer = await ask(proxy, beginning)
            is_http = beginning[:1] not in {b"", b"\x05"}
            assert answer.startswith(b"HTTP/1.1 408") if is_http else answer in {b"", b"\x05\x00"}
            assert gate.counts.open == 0

    await with_more_time(dally, 0.3, 10.0)  # what he says at first is there within it


async def test_socks_leads_to_names_and_addresses_and_says_why_not(agent) -> None:
    async with (
        served(echo) as port,
        proxied(agent, here(port, "gone.test:80", f"127.0.0.1:{(nobody := free_port())}")) as (
            proxy,
            gate,
        ),
    ):
        wanted, four = port.to_bytes(2), b"\x01\x7f\0\0\x01"
        hello, name = b"\x05\x02\x02\x00", b"\x03\x08api.test"
        done = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)
        for host in (name, four, b"\x03\x09127.0.0.1"):
            assert await ask(proxy, hello + b"\x05\x01\x00" + host + wanted + b"hi", ends=True) == done + b"hi"
        for request, reply in (
            (b"\x05\x01\x00" + name + b"\x00\x01", 2),
            (b"\x05\x01\x00\x04" + bytes(15) + b"\x01" + wanted, 2),
            (b"\x05\x01\x00\x03\x09gone.test\x00\x50", 4),
            (b"\x05\x01\x00" + four + nobody.to_bytes(2), 5),
            (b"\x05\x02\x00" + name + wanted, 7),
            (b"\x05\x03\x00" + name + wanted, 7),
            (b"\x05\x01\x00\x09" + wanted, 8),
            (b"\x05\x01\x00\x03\x03a b" + wanted, 8),
            (b"\x05\x01\x00" + name + b"\x00\x00", 8),
        ):
            answer = await ask(proxy, hello + request)
            assert (answer[:2], answer[2:4]) == (b"\x05\x00", bytes([5, reply])), request
        assert await ask(proxy, b"\x05\x01\x02") == b"\x05\xff"
        assert await ask(proxy, b"\x04\x01\x00\x50\x7f\0\0\x01\0") == b""
        assert await ask(proxy, hello + b"\x04\x01\x00\x01") == b"\x05\x00"
        assert gate.counts.open == 0


def client_hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@pytest.mark.parametrize("way", ["connect", "socks"])
async def test_a_tls_client_asks_for_the_host_that_it_was_connected_to(agent, way: str) -> None:
    async with served(echo) as port, proxied(agent, here(port)) as (proxy, gate):
        begin = b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port
        if way == "socks":
            begin = b"\x05\x01\x00\x05\x01\x00\x03\x08api.test" + port.to_bytes(2)
        for name in ("api.test", "API.test", None):
            said = client_hello(name)
            assert (await ask(proxy, begin + said, ends=True)).endswith(said)
        for said, why in (
            (client_hello("evil.test"), "a TLS client asked for evil.test at api.test"),
            (b"\x16\x03\x01\x00\x05hello", "what began as TLS is none that can be read"),
            (b"\x16" + bytes(70_000), "what began as TLS is none that can be read"),
        ):
            assert said[:20] not in await ask(proxy, begin + said)
            assert (gate.log[-1].allowed, gate.log[-1].why) == (False, why)


async def test_a_tls_client_at_an_address_asks_for_what_the_list_has(agent) -> None:
    async with served(echo) as port, proxied(agent, here(port)) as (proxy, gate):
        begin = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port
        said = client_hello("api.test")
        assert (await ask(proxy, begin + said, ends=True)).endswith(said)
        await ask(proxy, begin + client_hello("evil.test"))
        assert gate.log[-1].why == "a TLS client asked for evil.test at 127.0.0.1"


async def test_a_host_that_speaks_first_is_heard(agent) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(await reader.readline())

    async with served(greet) as port, proxied(agent, here(port)) as (proxy, _):
        reader, writer = await connect(proxy)
        writer.write(b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readline() == b"220 hello\r\n"
        writer.write(b"quit\r\n")
        assert await reader.read() == b"quit\r\n"
        writer.close()


async def test_a_new_policy_ends_the_connections_that_are_against_it_and_no_others(agent) -> None:
    look_up = Answering(api_test=HERE, other_test=HERE)
    async with served(echo) as port:
        both = here(port, f"other.test:{port}")
        async with proxied(agent, both, look_up) as (proxy, gate):
            kept = await connect(proxy)
            lost = await connect(proxy)
            for (reader, writer), name in ((kept, b"api.test"), (lost, b"other.test")):
                writer.write(b"CONNECT %s:%d HTTP/1.1\r\nHost: a\r\n\r\n" % (name, port))
                await reader.readuntil(b"\r\n\r\n")
            assert gate.counts.open == 2
            gate.change(here(port))
            with pytest.raises(ConnectionResetError):
                await lost[0].read(1)
            kept[1].write(b"on")
            assert await kept[0].readexactly(2) == b"on"
            gate.change("none")
            with pytest.raises(ConnectionResetError):
                await kept[0].read(1)
            assert told(await ask(proxy, b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port))[0] == 403
            for _, writer in (kept, lost):
                writer.close()


async def test_a_list_that_only_logs_tells_what_is_missing_in_it(agent) -> None:
    look_up = Answering(api_test=HERE, bad_test=("169.254.169.254",))
    async with (
        served(echo) as port,
        proxied(agent, Allow(f"127.0.0.1:{port}", log_only=True), look_up) as (proxy, gate),
    ):
        request = b"CONNECT api.test:%d HTTP/1.1\r\nHost: a\r\n\r\nhi" % port
        assert (await ask(proxy, request, ends=True)).endswith(b"hi")
        assert told(await ask(proxy, b"CONNECT bad.test:80 HTTP/1.1\r\nHost: a\r\n\r\n"))[0] == 403
        assert (gate.log[0].allowed, gate.log[0].why) == (True, "api.test is not in the list")


async def test_who_asks_the_proxy_for_a_service_of_another_machine_is_told_to_leave_it_out(agent, tmp_path) -> None:
    names = Names(agent, hosts=str(tmp_path / "hosts"))
    gate = Gate(Allow("api.test:5432"), look_up=Answering(), is_near=names.has)
    port = free_port()
    said = {
        "db": "db is reached without a proxy: add it to NO_PROXY",
        "web": "web is not in the list",
        # One that the list has at another port is found by us, too, at that port.
        "api.test": "port 80 of api.test is not in the list, which has 5432",
    }
    async with (
        await names.open("db"),
        await names.open("api.test"),
        Proxy(agent, port, listening=await agent.listen(port), gate=gate),
    ):
        for name, why in said.items():
            answer = await ask(port, f"GET http://{name}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert told(answer) == (403, f"vmfork: {why}")
    gate.close()


async def test_connections_begin_no_faster_than_the_pace_whatever_becomes_of_them(agent) -> None:
    gap_s = 0.1
    async with served(echo) as port, proxied(agent, here(port), pace=Pace(2, 1 / gap_s)) as (proxy, gate):
        begun = time.monotonic()
        requests = [b"CONNECT %s:%d HTTP/1.1\r\nHost: a\r\n\r\n" % (name, port) for name in (b"api.test", b"evil.test")]
        await asyncio.gather(*(ask(proxy, request, ends=True) for request in requests * 3))
        # Two at once, and four that waited, however fast this host is.
        assert time.monotonic() - begun > 4 * gap_s - 0.001
        assert (gate.counts.allowed, gate.counts.denied) == (3, 3)


async def test_the_log_keeps_the_last_thousand_and_tells_each(agent) -> None:
    gate = Gate(Allow("api.test"))
    following = gate.follow()
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)  # it follows from now on
    for number in range(1_500):
        gate.deny("evil.test", 80, str(number))
    gate.close()
    kept = [str(number) for number in range(500, 1_500)]
    assert [each.why for each in gate.log] == kept
    # Who was slow misses what the log has lost.
    assert [(await waiting).why, *[each.why async for each in following]] == kept
    assert gate.counts.denied == 1_500


async def test_a_host_with_its_port_is_found_by_its_name_where_no_proxy_is_known(
    agent, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(ways, "PROXY_PORT", free_port())
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    async with served(echo) as port:
        gate = Gate(here(port), look_up=Answering(api_test=HERE, other_test=HERE))
        async with Ways(agent, gate, Names(agent, hosts=str(hosts)), is_in_env=True) as out:
            # 127.0.0.1, which the guest of a test shares with the service, is taken: a machine has its own.
            await out.open(timeout_s=LIMIT_S)
            assert hosts.read_text().splitlines()[0] == "127.0.1.2\tapi.test\t# vmfork"
            reader, writer = await asyncio.open_connection("127.0.1.2", port)
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            gate.change(Allow(f"other.test:{port}", f"127.0.0.1:{port}"))
            await out.open(timeout_s=LIMIT_S)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            writer.close()
            assert "api.test" not in hosts.read_text()
            assert "\tother.test\t" in hosts.read_text()
        assert hosts.read_text() == "127.0.0.1\tlocalhost\n"
        gate.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", ways.PROXY_PORT)


def test_programs_find_the_proxy_by_their_environment_unless_they_have_their_own() -> None:
    found = proxy_env("vm-1", {"HTTPS_PROXY": "http://mine:1"})
    assert found["http_proxy"] == found["HTTP_PROXY"] == found["ALL_PROXY"] == "http://127.0.0.1:3128"
    assert found["no_proxy"] == found["NO_PROXY"] == "localhost,127.0.0.1,127.0.0.0/8,::1,vm-1"
    assert "https_proxy" not in found
