"""Ports of a guest: from Python and from the host, of forks, of detached machines, and to the end of each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, suppress

import pytest

import vmfork
from tests.vm.cli_runner import Running
from tests.vm.cli_runner import vmfork as command
from tests.vm.test_detached import end
from vmfork.aio import VM, Template
from vmfork.config import find_places
from vmfork.errors import Closed, ConfigError, HostError, PortError
from vmfork.machine.folder import sweep_ended

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 60.0
PORT = 8000
# Says who it is: the id that the fork was given after the server was started.
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = open("/run/vmfork/fork-id", "rb").read().strip()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        import hashlib
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 65536))
            digest.update(piece)
            left -= len(piece)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_PUT(self):
        import hashlib, os
        digest, block, left = hashlib.sha256(), os.urandom(1 << 16), int(self.headers["X-Size"])
        self.send_response(200)
        self.send_header("Content-Length", str(left + 64))
        self.end_headers()
        while left:
            piece = block[:left]
            digest.update(piece)
            self.wfile.write(piece)
            left -= len(piece)
        self.wfile.write(digest.hexdigest().encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.request_queue_size = 300
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
START = "cat > /root/server.py <<'END'\n" + SERVER + "END\nsetsid python3 /root/server.py >/dev/null 2>&1 &"
READY = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))'"


@pytest.fixture(scope="module")
def warm(instance):
    """A template with a server that is warm: it has answered."""
    ready = f"until {READY} 2>/dev/null; do sleep 0.1; done"
    template = asyncio.run(Template.build("ports", warm_up=[START, ready]))
    yield "ports"
    asyncio.run(template.remove())


@pytest.fixture
async def served(warm) -> Template:
    return await Template.open(warm)


async def get(port: int, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    return await _ask(reader, writer)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes = b"") -> bytes:
    head = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n" if body else "GET / HTTP/1.1\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]


async def test_many_forks_of_a_warm_server_answer_each_with_its_own_id(served) -> None:
    # A test host's one CPU is emulated: it is too slow for 20 guests of KVM to prove their clocks, and short of memory.
    count = 20 if len(os.sched_getaffinity(0)) > 1 else 6
    async with AsyncExitStack() as stack:
        forks = await served.fork_many(count)
        for vm in forks:
            await stack.enter_async_context(vm)
        ports = [await stack.enter_async_context(vm.forward(PORT)) for vm in forks]
        answers = await asyncio.gather(*(get(port.host_port) for port in ports))
        assert answers == [vm.id.encode() for vm in forks]
        assert len({port.host_port for port in ports}) == count


@pytest.mark.qemu
async def test_a_port_of_either_loopback_a_path_and_python_itself_lead_to_it(served, tmp_path) -> None:
    async with served.fork() as vm:
        async with vm.forward(PORT, "[::1]:0") as six, vm.forward(PORT, str(tmp_path / "s")) as path:
            assert await get(six.host_port, "::1") == vm.id.encode()
            assert await _ask(*await asyncio.open_unix_connection(path.path)) == vm.id.encode()
            with pytest.raises(HostError, match=f"{six.host_port}.*in use"):
                await vm.forward(PORT, six.address)
        async with vm.open_connection(PORT) as connection:
            await connection.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := await connection.read(timeout_s=LIMIT_S):
                answer += piece
            assert answer.endswith(vm.id.encode())
        with pytest.raises(PortError, match="nothing listens"):
            await vm.open_connection(PORT + 1)


async def test_a_service_on_ipv6_alone_is_waited_for_and_reached(served) -> None:
    async with served.fork() as vm:
        script = "import socket; s = socket.create_server(('::1', 81), family=socket.AF_INET6)\n"
        script += "s.accept()[0].send(b'six')"
        async with vm.start(["python3", "-c", script]):
            await vm.wait_for_port(81, timeout_s=LIMIT_S)
            async with vm.open_connection(81) as connection:
                assert await connection.read(timeout_s=LIMIT_S) == b"six"


async def put(port: int, content: bytes) -> str:
    """The digest that the guest made of it."""
    return (await _ask(*await asyncio.open_connection("127.0.0.1", port), content)).decode()


async def check_taken(port: int, size: int) -> None:
    """The guest sends `size` bytes, and their digest behind them, which is ours too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"PUT / HTTP/1.1\r\nX-Size: {size}\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    digest = hashlib.sha256()
    while size:
        piece = await reader.read(min(size, 65536))
        assert piece, f"{size} bytes are missing"
        digest.update(piece)
        size -= len(piece)
    assert (await reader.read()).decode() == digest.hexdigest()
    writer.close()


async def test_megabytes_arrive_whole_both_ways_and_many_callers_at_once(served) -> None:
    content = os.urandom(8_000_000)
    async with served.fork() as vm, vm.forward(PORT) as port:
        sent = put(port.host_port, content)
        digest, _ = await asyncio.gather(sent, check_taken(port.host_port, len(content)))
        assert digest == hashlib.sha256(content).hexdigest()
        answers = await asyncio.gather(*(get(port.host_port) for _ in range(64)))
        assert set(answers) == {vm.id.encode()}


@pytest.mark.parametrize("end_with", ["pause", "close", "detach"])
async def test_a_machine_that_is_closed_paused_or_detached(served, end_with: str) -> None:
    vm = await served.fork()
    forward = await vm.forward(PORT)
    if end_with == "pause":
        await vm.pause()
        waiting = asyncio.ensure_future(get(forward.host_port))
        with pytest.raises(vmfork.DeadlineExceeded):
            await vm.open_connection(PORT, timeout_s=0.1)
        await vm.resume()
        assert await waiting == vm.id.encode()
        await vm.aclose()
    elif end_with == "close":
        await vm.aclose()
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.host_port)
        writer.write(b"GET /")
        await writer.drain()
        async with await VM.attach(await vm.detach()) as taken, taken.forward(PORT) as again:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert await get(again.host_port) == taken.id.encode()
        writer.close()
    await forward.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await get(forward.host_port)
    for call in (vm.forward(PORT), vm.open_connection(PORT), vm.wait_for_port(PORT)):
        with pytest.raises(Closed):
            await call


async def test_what_is_no_port_is_refused_by_name(served) -> None:
    async with served.fork() as vm:
        for port in (0, 65_536, -1, "http", None, 80.5, True):
            for call, field in ((vm.forward(port), "guest_port"), (vm.open_connection(port), "port")):
                with pytest.raises(ConfigError, match="a whole number from 1 to 65535") as told:
                    await call
                assert told.value.field == field
        with pytest.raises(ConfigError, match="not an address"):
            await vm.forward(PORT, "example.org:80")
        with pytest.raises(HostError, match="cannot listen at"):
            await vm.forward(PORT, "192.0.2.1:0")


def test_an_owner_that_is_killed_leaves_no_listener(warm) -> None:
    script = f"""
import vmfork, time
with vmfork.Template.open("ports").fork() as vm, vm.forward({PORT}) as port:
    print(port.host_port, vm.id, flush=True)
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        number, vm_id = owner.stdout.readline().split()
        port = int(number)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait(LIMIT_S)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    asyncio.run(sweep_ended(find_places().vms / vm_id))


def test_blocking_callers_have_the_same(warm) -> None:
    with vmfork.Template.open("ports").fork() as vm, vm.forward(PORT) as port:
        vm.wait_for_port(PORT)
        with vm.open_connection(PORT) as connection:
            connection.write(b"GET / HTTP/1.0\r\n\r\n")
            connection.write_eof()
            answer = b""
            while piece := connection.read(timeout_s=LIMIT_S):
                answer += piece
        assert answer.endswith(vm.id.encode())
        with socket.create_connection((port.host, port.host_port)) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"


async def test_clients_of_a_detached_machine_forward_each_for_itself(served) -> None:
    vm = await served.start(name="ports-web")
    try:
        async with VM.connect("ports-web") as one, VM.connect("ports-web") as other:
            async with one.forward(PORT) as first, other.forward(PORT) as second:
                assert {await get(first.host_port), await get(second.host_port)} == {vm.id.encode()}
                listed = command("port", "ports-web", "--json").check()
                shown = {(each["guest_port"], each["address"]) for each in json.loads(listed.out)}
                assert shown == {(PORT, first.address), (PORT, second.address)}
            assert command("port", "ports-web").check().out == ""
    finally:
        await end(vm)


async def test_a_machine_that_gets_an_owner_drops_the_connections_of_its_clients(served) -> None:
    async with served.start(name="ports-web") as left, left.forward(PORT) as lost:
        reader, writer = await asyncio.open_connection("127.0.0.1", lost.host_port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with await VM.attach("ports-web") as owner, owner.forward(PORT) as mine:
            with suppress(ConnectionResetError):
                await reader.read()
            await lost.wait_closed()
            assert await get(mine.host_port) == owner.id.encode()
        writer.close()


async def test_a_command_forwards_until_it_is_ended(served) -> None:
    vm = await served.start(name="ports-web")
    try:
        with Running("forward", "ports-web", f"127.0.0.1:0:{PORT}") as forwarding:
            forwarding.wait_for("\n", fd=1)
            line = forwarding.seen(1)
            guest, _, address = line.strip().partition(" -> ")
            assert (guest, command("port", "ports-web").check().out) == (str(PORT), line)
            assert await get(int(address.rpartition(":")[2])) == vm.id.encode()
            forwarding.interrupt(signal.SIGINT)
            assert forwarding.end().status == 130
    finally:
        await end(vm)


async def test_a_command_leads_to_a_service_of_the_host_until_it_is_ended(served) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"of the host")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    call = "import socket; print(socket.create_connection(('127.0.0.1', 5432)).recv(100))"
    vm = await served.start(name="ports-web")
    try:
        with Running("reverse", "ports-web", where, "5432") as leading:
            await asyncio.to_thread(leading.wait_for, "\n", fd=1)
            assert leading.seen(1) == f"5432 -> {where}\n"
            said = await vm.exec(["python3", "-c", call], timeout_s=LIMIT_S, check=True)
            assert said.stdout == "b'of the host'\n"
            leading.interrupt(signal.SIGINT)
            assert leading.end().status == 130
        said = await vm.exec(["python3", "-c", call], timeout_s=LIMIT_S)
        assert "ConnectionRefusedError" in said.stderr
        for wrong, field in ((("example.org:80", "81"), "not an address"), ((where, "0"), "not a port")):
            told = command("reverse", "ports-web", *wrong)
            assert (told.status, field in told.err) == (2, True), told
        told = json.loads(command("reverse", "ports-web", where, str(PORT), "--json").out)
        assert "somebody listens" in told["error"]["message"]
    finally:
        server.close()
        await end(vm)


def wait_gone(pid: int) -> None:
    """The process has ended, which is no child of ours."""
    with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid)) as process:
        assert select.select([process], [], [], LIMIT_S)[0], f"process {pid} goes on"


@pytest.mark.parametrize("ended", ["machine", "broker", "forwarder"])
def test_ports_of_a_machine_that_was_started_end_with_it(warm, ended: str) -> None:
    started = json.loads(command("start", "-t", "ports", "-p", str(PORT), "--json").check().out)
    vm_id, (told,) = started["id"], started["ports"]
    port = int(told["address"].rpartition(":")[2])
    try:
        assert asyncio.run(get(port)).decode() == vm_id
        (listed,) = json.loads(command("port", vm_id, "--json").check().out)
        assert (listed["guest_port"], listed["address"]) == (PORT, told["address"])
        if ended == "machine":
            command("stop", vm_id, "--grace", "0").check()
        elif ended == "broker":
            os.kill(json.loads(command("show", vm_id, "--json").check().out)["owner_pid"], signal.SIGKILL)
        else:
            os.kill(listed["pid"], signal.SIGKILL)
        wait_gone(listed["pid"])
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(get(port))
        if ended == "forwarder":
            assert command("port", vm_id).check().out == ""
            command("exec", vm_id, "true").check()
    finally:
        if ended == "forwarder":
            command("stop", vm_id, "--grace", "0").check()
        command("gc").check()


def test_a_machine_whose_port_is_taken_is_not_started(warm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = f"{taken.getsockname()[1]}:{PORT}"
        for argv, status in (("start",), 1), (("run", "-d"), 125):
            told = command(*argv, "-t", "ports", "-p", wanted, "--", "true")
            assert told.status == status
            assert f"{wanted.partition(':')[0]}: Address already in use" in told.err
    told = command("start", "-t", "ports", "-p", str(PORT), "--idle-ttl", "5")
    assert (told.status, "never idle" in told.err) == (2, True)
    assert [each for each in json.loads(command("ps", "--json").check().out) if each["template"] == "ports"] == []


def test_run_forwards_while_the_command_runs(warm) -> None:
    script = "import time; time.sleep(1000)"
    with Running("run", "-t", "ports", "-p", str(PORT), "python3", "-c", script) as running:
        running.wait_for("\n")
        line = running.seen(2).split()
        assert line[:3] == ["port", str(PORT), "->"]
        port = int(line[3].rpartition(":")[2])
        assert len(asyncio.run(get(port))) == 12
        running.interrupt(signal.SIGINT)
        running.end()
    for wrong in ("0", "65536", "http", "a:80", "192.0.2.1:80:80"):
        told = command("run", "-t", "ports", "-p", wrong, "true")
        assert (told.status, "hint:" in told.err) == (125, True)


async def test_a_service_of_the_host_is_reached_at_a_port_of_the_guest(served) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"host:" + await reader.read(100))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    call = "import socket; s = socket.create_connection(('127.0.0.1', 5432)); s.sendall(b'%s'); print(s.recv(100))"
    async with served.fork() as one, served.fork() as other:
        async with one.reverse(address, 5432), other.reverse(address, 5432):
            for vm in (one, other):
                said = await vm.exec(["python3", "-c", call % vm.id], timeout_s=LIMIT_S, check=True)
                assert said.stdout == f"b'host:{vm.id}'\n"
            with pytest.raises(PortError, match="somebody listens"):
                await one.reverse(address, PORT)
        said = await one.exec(["python3", "-c", call % "x"], timeout_s=LIMIT_S)
        assert "ConnectionRefusedError" in said.stderr
        for wrong in ("127.0.0.1:0", "example.org:80", "5432 "):
            with pytest.raises(ConfigError):
                await one.reverse(wrong, 5432)
    server.close()


# What each kind of way out says, in the order of the table in docs/concepts/network.md.
ATTEMPTS = """
import errno, socket
def attempt(name, call):
    try:
        call()
    except OSError as error:
        is_name = isinstance(error, socket.gaierror)
        print(name, "no name" if is_name else errno.errorcode[error.errno])
    else:
        print(name, "went out")
def to(family, kind, address, protocol=0):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(5)
        if kind == socket.SOCK_DGRAM and family == socket.AF_INET:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(b"x" * 64, address) if kind != socket.SOCK_STREAM else s.connect(address)
def packet():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        s.bind(("eth0", 0))
four, six, tcp, udp, raw = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
for host in ("192.0.2.1", "10.0.2.2", "169.254.169.254"):
    attempt("tcp", lambda: to(four, tcp, (host, 80)))
    attempt("udp", lambda: to(four, udp, (host, 53)))
    attempt("icmp", lambda: to(four, raw, (host, 0), socket.IPPROTO_ICMP))
    attempt("ping", lambda: to(four, udp, (host, 0), socket.IPPROTO_ICMP))
    attempt("raw", lambda: to(four, raw, (host, 0), socket.IPPROTO_RAW))
for host in ("255.255.255.255", "224.0.0.251"):  # who gives addresses, and who knows names, on a network of its own
    attempt("to-all", lambda: to(four, udp, (host, 5353)))
attempt("sctp", lambda: to(four, tcp, ("192.0.2.1", 80), 132))
attempt("tcp6", lambda: to(six, tcp, ("2001:db8::1", 80)))
attempt("tcp6", lambda: to(six, tcp, ("::ffff:192.0.2.1", 80)))
attempt("icmp6", lambda: to(six, raw, ("ff02::1", 0), socket.IPPROTO_ICMPV6))
attempt("udp6", lambda: to(six, udp, ("2001:db8::1", 53)))
attempt("packet", packet)
attempt("vsock", lambda: to(getattr(socket, "AF_VSOCK", 40), tcp, (2, 1024)))
attempt("name", lambda: socket.getaddrinfo("example.org", 80))
import os
print("interfaces", *sorted(os.listdir("/sys/class/net")))
"""


@pytest.mark.qemu
async def test_a_guest_has_no_way_out(served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with served.fork() as vm:
            told = (await vm.exec(["python3", "-c", ATTEMPTS], timeout_s=LIMIT_S, check=True)).stdout.splitlines()
            with pytest.raises(PortError):  # the host's loopback is another
                await vm.open_connection(listener.getsockname()[1])
    assert told[-1] == "interfaces lo"
    met = {tuple(line.split(maxsplit=1)) for line in told[:-1]}
    assert {name for name, _ in met} == {
        "tcp", "udp", "icmp", "ping", "raw", "to-all", "sctp", "tcp6", "icmp6", "udp6", "packet", "vsock", "name",
    }  # fmt: skip
    refused = {"ENETUNREACH", "EADDRNOTAVAIL", "ENODEV", "EAFNOSUPPORT", "no name", "EINVAL", "EPERM"}
    # Of ICMP without a raw socket, where no group may have one; of protocols that the kernel has not.
    refused |= {"EACCES", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
    assert {why for _, why in met} <= refused, met
