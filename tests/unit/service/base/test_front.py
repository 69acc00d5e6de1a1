"""The socket that clients see, with real processes on both ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from vmfork.errors import HostError, StoreBusy
from vmfork.service.base.claim import Claim
from vmfork.service.base.front import Front, Inner

ECHO = "hello " * 50_000

# A server that holds the endpoint until it is killed.
HOLDER = """
import asyncio, sys
from pathlib import Path
from vmfork.service.base.claim import Claim
from vmfork.service.base.front import Front, Inner
async def main():
    endpoint = Path(sys.argv[1])
    claim = Claim.take(endpoint, other="another", hint="")
    await Front(endpoint, Inner(endpoint)).open()
    print("open", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""

# What another user sees: what it read, or how it failed. (The interpreter may lie where that user cannot start it.)
OTHER = """
import os, socket, sys
if len(sys.argv) > 2:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(b"hello")
    print("read", s.recv(100))
except OSError as error:
    print(type(error).__name__)
"""


def claimed(endpoint) -> Claim:
    return Claim.take(endpoint, other="another server", hint="name another")


@contextmanager
def opened(endpoint):
    """A claimed endpoint with room for gRPC's own socket, of which nothing is left."""
    with closing(claimed(endpoint)), closing(Inner(endpoint)) as inner:
        yield inner
    assert list(endpoint.parent.iterdir()) == []


@pytest.fixture
async def front(endpoint):
    """A front before a server that sends back what it gets; its own connections are counted."""

    async def answer(reader, writer) -> None:
        joined.append(asyncio.current_task())
        with suppress(ConnectionError):  # its client went while it was answered
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    joined = []
    with opened(endpoint) as inner:
        server = await asyncio.start_unix_server(answer, inner.path)
        front = Front(endpoint, inner)
        await front.open()
        front.joined = joined
        yield front
        await front.aclose()
        async with asyncio.timeout(60):
            await asyncio.gather(*joined)
        server.close()


async def test_bytes_pass_both_ways_and_so_does_their_end(front, endpoint) -> None:
    reader, writer = await asyncio.open_unix_connection(str(endpoint))
    writer.write(ECHO.encode())
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), 60)).decode() == ECHO
    writer.close()


async def test_a_client_that_reads_nothing_stops_only_itself(front, endpoint) -> None:
    _, slow = await asyncio.open_unix_connection(str(endpoint), limit=1024)
    slow.transport.pause_reading()
    slow.write(b"x" * 4_000_000)
    reader, writer = await asyncio.open_unix_connection(str(endpoint))
    writer.write(b"quick")
    assert await asyncio.wait_for(reader.readexactly(5), 60) == b"quick"
    for end in (slow, writer):
        end.transport.abort()


async def test_who_goes_while_it_is_joined_leaves_nothing(front, endpoint) -> None:
    for _ in range(50):
        _, writer = await asyncio.open_unix_connection(str(endpoint))
        writer.transport.abort()
    reader, writer = await asyncio.open_unix_connection(str(endpoint))
    writer.write(b"x")
    await asyncio.wait_for(reader.readexactly(1), 60)
    async with asyncio.timeout(60):
        while len(front._connections) > 2:
            await asyncio.sleep(0)
    writer.close()


async def test_modes_keep_others_out(front, endpoint) -> None:
    def modes(*paths) -> list[int]:
        return [stat.S_IMODE(path.stat().st_mode) for path in paths]

    inner = endpoint.with_name("cache.sock.d")
    assert modes(endpoint.parent, inner) == [0o700, 0o700]
    assert modes(endpoint, endpoint.with_name("cache.sock.lock")) == [0o600, 0o600]


@pytest.mark.needs("root")
async def test_another_user_is_not_served_though_the_modes_let_it_in(front, endpoint) -> None:
    with ExitStack() as stack:
        for path in endpoint.parents:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & 0o001:
                path.chmod(mode | 0o011)
                stack.callback(path.chmod, mode)
        endpoint.chmod(0o666)
        command = [sys.executable, "-c", OTHER, str(endpoint), "as nobody"]
        other = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        told, _ = await asyncio.wait_for(other.communicate(), 20)
    assert told.decode().strip() in ("read b''", "ConnectionResetError", "BrokenPipeError")
    assert (front.refused, front.joined) == (1, [])


async def test_a_killed_servers_socket_is_recovered_and_a_live_ones_is_not(endpoint) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(endpoint)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"open\n"
            with pytest.raises(StoreBusy, match=f"process {holder.pid}"):
                claimed(endpoint)
            assert endpoint.is_socket()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert endpoint.is_socket()
    assert endpoint.with_name("cache.sock.d").is_dir()
    with opened(endpoint) as inner:
        assert not endpoint.exists()
        assert not Path(inner.path).exists()


@pytest.mark.parametrize("length", [90, 107])
async def test_a_path_may_be_as_long_as_the_kernel_takes_it(tmp_path, length) -> None:
    path = tmp_path / "d"
    endpoint = path / ("x" * (length - len(str(path)) - 1))
    assert len(str(endpoint)) == length
    with opened(endpoint) as inner:
        server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), inner.path)
        front = Front(endpoint, inner)
        await front.open()
        reader, writer = await asyncio.open_unix_connection(str(endpoint))
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        await front.aclose()
        server.close()


def test_what_is_no_socket_is_not_removed(tmp_path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "file").write_text("mine")
    with pytest.raises(HostError, match="is not a socket"):
        claimed(tmp_path / "d" / "file")
    assert (tmp_path / "d" / "file").read_text() == "mine"
    claimed(tmp_path / "d" / "free").close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(HostError, match="others may write"):
        claimed(folder / "s")
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_server_that_is_ending_is_not_taken_for_a_free_one(endpoint) -> None:
    first = claimed(endpoint)
    first.close()
    second = claimed(endpoint)
    with pytest.raises(StoreBusy):
        claimed(endpoint)
    second.close()


def test_a_socket_is_what_the_tests_think_it_is(tmp_path) -> None:
    """The refusal of a wrong user cannot pass because nobody could connect: our own user can, the same way."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        run = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(5) == b"hello"
            connection.sendall(b"hi")
        assert run.communicate(timeout=20)[0].strip() == "read b'hi'"
