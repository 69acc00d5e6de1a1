"""passt, and the library that keeps it from the host's loopback: both are the real ones, the frames the test's."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.children import wait_gone
from tests.rules.capabilities import find_own_address
from vmfork.errors import HostError
from vmfork.host import passt as module
from vmfork.host.passt import Outlet, find_passt, locate_passt, read_own_resolver, start_passt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.host.passt import StartedPasst

needs_passt = pytest.mark.needs("passt", "own-address")
LIMIT_S = 30.0
GUEST, OURS, ITS = "10.0.2.77", bytes.fromhex("020102030405"), bytes.fromhex("52550a000202")
PORT = 40123


@pytest.fixture
async def outlet() -> Outlet:
    passt = await find_passt()
    return Outlet(program=passt.path, address=GUEST, prefix=24, gateway="10.0.2.2", name_server="10.0.2.3")


@contextmanager
def started(outlet: Outlet, log: tuple[int, int]) -> Iterator[StartedPasst]:
    """A passt that has come up."""
    passt = start_passt(outlet, log_fd=log[1])
    ready = passt.take_ready()
    try:
        assert select.select([ready], [], [], LIMIT_S)[0]
        assert os.read(ready, 1) == b"\0"
        yield passt
    finally:
        os.close(ready)
        passt.close()


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def frame(to: str, port: int, protocol: int, *, payload: bytes = b"who", source_port: int = PORT) -> bytes:
    """A frame of the guest's, behind its length: a datagram, or a connection's first segment (RFC 791, 768, 9293)."""
    source, target = socket.inet_aton(GUEST), socket.inet_aton(to)
    if protocol == socket.IPPROTO_UDP:
        inner = struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
    else:
        inner = struct.pack("!HHIIBBHHH", source_port, port, 1000, 0, 5 << 4, 2, 65000, 0, 0)
        sum_ = checksum(source + target + struct.pack("!BBH", 0, protocol, len(inner)) + inner)
        inner = inner[:16] + struct.pack("!H", sum_) + inner[18:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(inner), 1, 0, 64, protocol, 0, source, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    whole = ITS + OURS + b"\x08\x00" + head + inner
    return struct.pack("!I", len(whole)) + whole


@contextmanager
def listening(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """For connections and for datagrams, each at a port of its own."""
    with socket.create_server((host, 0)) as streams, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((host, 0))
        streams.settimeout(LIMIT_S)
        datagrams.settimeout(LIMIT_S)
        yield streams, datagrams


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


@needs_passt
@pytest.mark.parametrize("to", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3"])
async def test_what_a_guest_sends_to_the_hosts_loopback_is_dropped_and_what_comes_behind_it_arrives(
    outlet, log, to
) -> None:
    own = find_own_address()
    with listening("0.0.0.0") as (streams, datagrams), started(outlet, log) as passt:
        for target in (to, own):
            passt.line.sendall(frame(target, port_of(streams), socket.IPPROTO_TCP))
            passt.line.sendall(frame(target, port_of(datagrams), socket.IPPROTO_UDP, payload=target.encode()))
        said, caller = datagrams.recvfrom(100)
        connection, peer = streams.accept()
        with connection:
            assert (said.decode(), caller[0], peer[0]) == (own, own, own)
        # passt takes frames in their order: nothing is on its way any more.
        assert select.select([streams, datagrams], [], [], 0)[0] == []


@needs_passt
async def test_a_guest_takes_no_port_of_the_host(outlet, log) -> None:
    own = find_own_address()
    with (
        listening(own) as (_, datagrams),
        started(outlet, log) as passt,
        socket.socket(type=socket.SOCK_DGRAM) as other,
    ):
        other.bind(("", 0))  # by itself passt would bind this port too, and fail
        sent_from, sent_to = port_of(other), port_of(datagrams)
        passt.line.sendall(frame(own, sent_to, socket.IPPROTO_UDP, source_port=sent_from))
        _, (_, chosen) = datagrams.recvfrom(100)
        assert chosen != sent_from
        # The answer comes to the port that the guest sent from.
        datagrams.sendto(b"you", (own, chosen))
        assert struct.pack("!HH", sent_to, sent_from) in receive_frames(passt.line, b"you")


def receive_frames(line: socket.socket, last: bytes) -> bytes:
    line.settimeout(LIMIT_S)
    received = b""
    while last not in received:
        received += line.recv(65536)
    return received


@needs_passt
async def test_it_ends_with_whoever_has_its_other_end(outlet, log) -> None:
    with started(outlet, log) as passt:
        assert passt.identity.is_alive()
        passt.line.close()
        assert wait_gone(passt.process, limit_s=LIMIT_S)


@needs_passt
async def test_one_that_nobody_took_over_is_gone_and_reaped(outlet, log) -> None:
    passt = start_passt(outlet, log_fd=log[1])
    os.close(passt.take_ready())
    passt.close()
    assert not os.path.exists(f"/proc/{passt.pid}")


@needs_passt
async def test_one_that_does_not_load_the_library_is_not_used(monkeypatch) -> None:
    """As a static one would not, or one whose file has capabilities: here there is nothing to load."""
    monkeypatch.setattr(module, "find_fence", lambda: Path("/nowhere.so"))
    monkeypatch.setattr(module, "_probed", {})
    with pytest.raises(HostError, match="does not load the library"):
        await find_passt()


@needs_passt
@pytest.mark.needs("root")
async def test_it_is_nobody_in_a_sandbox_of_its_own_and_its_limits_are_low(outlet, log) -> None:
    with started(outlet, log) as passt:
        with open(f"/proc/{passt.pid}/status", encoding="ascii") as file:
            status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
        assert status["Uid"].split() == ["65534"] * 4
        assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")
        for kind in ("user", "mnt", "ipc", "uts"):
            assert os.readlink(f"/proc/{passt.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        with open(f"/proc/{passt.pid}/limits", encoding="ascii") as file:
            limits = {line[:26].strip(): line[26:].split()[1] for line in file}
        assert limits["Max open files"] == "4096"
        assert (limits["Max file size"], limits["Max core file size"]) == (str(64 << 10), "0")


async def test_where_there_is_none_it_is_told_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="passt was not found on PATH") as error:
        await find_passt()
    assert "apt-get install passt" in error.value.hint
    with pytest.raises(HostError, match="passt was not found on PATH"):
        locate_passt()


def put_passt(script: str, folder: Path, monkeypatch) -> None:
    program = folder / "passt"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("script", ["echo something else", "echo passt 1; exit 1", "exit 1"])
async def test_what_is_no_passt_is_told(script: str, tmp_path, monkeypatch) -> None:
    put_passt(script, tmp_path, monkeypatch)
    with pytest.raises(HostError, match="does not look like passt"):
        await find_passt()


async def test_one_that_tells_its_version_to_terminals_alone_is_one_of_no_version(tmp_path, monkeypatch) -> None:
    """As Debian 13's does."""
    put_passt('[ -t 1 ] && echo "passt 1"; exit 0', tmp_path, monkeypatch)
    assert (await find_passt()).version == ""


@pytest.mark.parametrize(
    ("text", "resolver"),
    [
        ("nameserver 127.0.0.53\n", "127.0.0.53"),
        ("# a comment\nsearch example.org\nnameserver ::1\nnameserver 127.0.0.1\n", "127.0.0.1"),
        ("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", None),  # passt asks the first
        ("nameserver\nnameserver x\n", None),
        ("", None),
    ],
)
def test_a_resolver_counts_where_it_is_the_first_and_at_the_loopback(tmp_path, text, resolver) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert read_own_resolver(tmp_path / "resolv.conf") == resolver
    assert read_own_resolver(tmp_path / "none") is None


# What a program meets that the library is loaded into: the name of an error, or "done".
TRIES = """
import errno, socket, sys
def meet(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def udp():
    return socket.socket(type=socket.SOCK_DGRAM)
def bound():
    one = udp()
    one.bind(("127.0.0.1", int(sys.argv[1])))
    assert one.getsockname()[1] == int(sys.argv[1])
def told():
    streams = socket.socket()
    streams.bind(("127.0.0.1", 0))
    streams.listen()
for act in (
    lambda: udp().connect(("127.0.0.1", 53)),
    lambda: udp().sendto(b"", ("127.0.0.1", 53)),
    lambda: udp().connect(("127.0.0.1", 54)),
    lambda: udp().connect(("127.0.0.2", 53)),
    lambda: socket.socket().connect(("127.0.0.1", 53)),
    lambda: udp().sendto(b"", ("127.0.0.1", 54)),
    lambda: udp().sendmsg([b""], [], 0, ("127.0.0.1", 54)),
    lambda: udp().connect(("0.0.0.0", 54)),
    lambda: udp().connect(("192.0.2.1", 54)),
    lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 54)),
    lambda: socket.socket(socket.AF_UNIX).connect("/nowhere"),
    bound,
    told,
):
    print(meet(act))
"""


@pytest.mark.needs("own-address")
def test_the_library_refuses_by_address_and_lets_the_hosts_own_resolver_be_asked_by_datagrams() -> None:
    """A resolver at the loopback, as systemd's is, and no other port or address of that."""
    with socket.socket() as passed, socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        environment = module._environment(passed=passed.fileno(), told=90, ready=passed.fileno())
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRIES, str(taken.getsockname()[1])],
            env={**environment, "VMFORK_FENCE_RESOLVER": "127.0.0.1"},
            pass_fds=(passed.fileno(),),
            capture_output=True,
            text=True,
            check=True,
        )
    refused = "ENETUNREACH"
    assert done.stdout.split() == ["done", "done", *[refused] * 6, "done", refused, refused, "done", "EACCES"]
