"""CONNECT: connections to ports of the guest, which here are the host's own; and what listens for them on the host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from vmfork.agent import ports as agent_ports
from vmfork.agent.client import AgentClient
from vmfork.agent.tunnel import tunnel_of
from vmfork.errors import Closed, ConfigError, DeadlineExceeded, GuestError, PortError, StoreBusy
from vmfork.host.lock import locked_folder
from vmfork.network import names as network_names
from vmfork.network.address import HostAddress, parse_address
from vmfork.network.forward import start_forward
from vmfork.network.listening import wait_listening
from vmfork.network.names import Names
from vmfork.network.reverse import start_reverse
from vmfork.wire import message
from vmfork.wire.command import Command
from vmfork.wire.frame import FIRST_CREDIT, MOST_CALLERS, MOST_CREDIT, MOST_TUNNELS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from vmfork.network.forward import Forward
    from vmfork.network.reverse import Reverse

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LOOPBACK = HostAddress("127.0.0.1")
LIMIT_S = 30.0
# More than every buffer between a writer and a reader that does not read.
PLENTY = 64 * 1024 * 1024


@asynccontextmanager
async def served(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a service, each of whose callers `serve` is given. In the end all of it has ended."""
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving[task] = writer
        with suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        del serving[task]

    server = await asyncio.start_server(each, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in serving.values():
            writer.transport.abort()
        await asyncio.gather(*serving)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def total(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers once the caller has said all: only half-closing gets an answer."""
    writer.write(hashlib.sha256(await reader.read()).hexdigest().encode())


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


@asynccontextmanager
async def forwarded(agent: AgentClient, port: int) -> AsyncIterator[Forward]:
    async with start_forward(agent, port, LOOPBACK) as forward:
        yield forward


async def read_all(connection) -> bytes:
    pieces = []
    while piece := await connection.read(timeout_s=LIMIT_S):
        pieces.append(piece)
    return b"".join(pieces)


def open_files(agent_pid: int | str) -> int:
    return len(os.listdir(f"/proc/{agent_pid}/fd"))


def agent_pid() -> int:
    """The one child of ours that is an agent."""
    mine = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    for pid in mine:
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as line:
                if stat.read().rsplit(")")[-1].split()[1] == str(os.getpid()) and "--fd" in line.read():
                    return pid
        except OSError:
            continue
    raise AssertionError("no agent runs")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_is_written_is_answered(agent, host) -> None:
    async with served(echo, host) as port, await agent.open_tunnel(port) as connection:
        for data in (b"a", b"x" * 300_000, b""):
            await connection.write(data)
            got = b""
            while len(got) < len(data):
                got += await connection.read(timeout_s=LIMIT_S)
            assert got == data


async def test_a_unix_socket_is_a_connection_too(agent, root_dir, monkeypatch) -> None:
    with pytest.raises(PortError, match="nothing listens at that path"):
        await agent.open_local("/line", port=1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await total(reader, writer)
        writer.close()

    service = await asyncio.start_unix_server(answer, root_dir / "line")
    try:
        async with await agent.open_local("/line", port=1) as connection:
            await connection.write(b"x" * 300_000)
            await connection.write_eof()
            assert await read_all(connection) == hashlib.sha256(b"x" * 300_000).hexdigest().encode()
    finally:
        service.close()
    with pytest.raises(PortError, match="nothing listens at that path"):
        await agent.open_local("/line", port=1)
    # To an agent that is older a path is no port. Then it is asked for that.
    monkeypatch.setattr(message, "connect_path_request", lambda stream, _path: message.connect_request(stream, 0))
    async with served(echo) as port, await agent.open_local("/line", port=port) as connection:
        await connection.write(b"a")
        assert await connection.read(timeout_s=LIMIT_S) == b"a"


async def test_half_of_a_connection_ends(agent) -> None:
    data = os.urandom(1_000_000)
    async with served(total) as port, await agent.open_tunnel(port) as connection:
        await connection.write(data)
        await connection.write_eof()
        await connection.write_eof()
        assert await read_all(connection) == hashlib.sha256(data).hexdigest().encode()
        assert await connection.read() == b""
        with pytest.raises(Closed, match="for writing"):
            await connection.write(b"more")
    with pytest.raises(Closed):
        await connection.read()


async def test_what_was_written_arrives_when_the_connection_is_closed(agent) -> None:
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def keep(reader: asyncio.StreamReader, _writer: object) -> None:
        came.set_result(await reader.read())

    async with served(keep) as port:
        async with await agent.open_tunnel(port) as connection:
            await connection.write(b"x" * 200_000)
        assert len(await came) == 200_000


async def test_a_connection_that_is_given_up_is_a_reset_in_the_guest(agent) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def keep(reader: asyncio.StreamReader, _writer: object) -> None:
        try:
            await reader.read()
        except ConnectionResetError as error:
            ended.set_result(type(error).__name__)
        else:
            ended.set_result("an end in order")

    async with served(keep) as port:
        connection = await agent.open_tunnel(port)
        await connection.write(b"half of a mes")
        await connection.abort()
        assert await ended == "ConnectionResetError"
        with pytest.raises(Closed):
            await connection.write(b"sage")


async def test_a_port_at_which_nobody_listens_refuses(agent) -> None:
    with pytest.raises(PortError, match="nothing listens at that port") as told:
        await agent.open_tunnel(free_port())
    assert told.value.reason == "refused"
    assert "wait_for_port" in told.value.hint


async def test_a_port_that_is_none_is_invalid(agent) -> None:
    for port in (0, 65_536, -1):
        with pytest.raises(PortError, match="a port from 1 to 65535 is needed"):
            await agent.open_tunnel(port)
    await agent.ping()


@pytest.mark.parametrize("window", [0, FIRST_CREDIT, 3 * FIRST_CREDIT, MOST_CREDIT])
async def test_as_much_is_under_way_as_was_asked_for(agent, monkeypatch, window: int) -> None:
    """A host that asks for nothing has what every stream has; so has one that does not know that it may ask."""
    monkeypatch.setattr(agent_ports, "WINDOW", window)
    listening = await agent.listen(port := free_port())
    async with served(total) as serving, await agent.open_tunnel(serving) as made:
        _, writer = await connect(port)
        async with await agent.attach(listening, await listening.next_caller(), port=port) as taken:
            await agent.ping()  # what the agent allowed has come before its answer
            tunnels = [tunnel_of(made), tunnel_of(taken)]
            assert [(each.window, each.credit) for each in tunnels] == [(window or FIRST_CREDIT,) * 2] * 2
        writer.close()
    agent.abandon(listening)


@pytest.fixture
async def late_agent(start_agent, compile_variant, root_dir: Path) -> AsyncIterator[AgentClient]:
    """A client of an agent that gives credit back because nothing else happens after an hour, and so never."""
    running = start_agent("--root", str(root_dir), binary=compile_variant("late", "-DOWED_MS=3600000"))
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        await client.hello(take_over=False, timeout_s=LIMIT_S)
        yield client


async def answer_questions(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What ends with a question mark is answered; all is taken."""
    while data := await reader.read(65536):
        if data.endswith(b"?"):
            writer.write(b"!")


async def wait_taken(connection) -> None:
    tunnel = tunnel_of(connection)
    async with asyncio.timeout(LIMIT_S):
        while not tunnel.all_was_taken:
            await tunnel.credited.next()


async def test_credit_comes_back_with_the_answer_and_at_once_where_much_is_owed(late_agent) -> None:
    async with served(answer_questions) as port, await late_agent.open_tunnel(port) as connection:
        tunnel = tunnel_of(connection)
        await connection.write(b"x" * 100)
        await late_agent.ping()
        assert tunnel.credit == tunnel.window - 100
        await connection.write(b"?")
        assert await connection.read() == b"!"
        await late_agent.ping()
        assert tunnel.credit == tunnel.window
        await connection.write(b"x" * (FIRST_CREDIT // 2))
        await wait_taken(connection)


async def test_credit_comes_back_while_another_stream_never_rests(late_agent) -> None:
    async with (
        served(answer_questions) as port,
        await late_agent.open_tunnel(port) as connection,
        await late_agent.start_exec(Command(["yes"])) as process,
    ):

        async def read_on() -> None:
            async for _ in process.output():
                pass

        reading = asyncio.create_task(read_on())
        await connection.write(b"x")
        await wait_taken(connection)
        reading.cancel()


async def test_credit_comes_back_where_nothing_else_happens(agent) -> None:
    async with served(answer_questions) as port, await agent.open_tunnel(port) as connection:
        await connection.write(b"x")
        await wait_taken(connection)


@pytest.mark.parametrize("window", [1, FIRST_CREDIT - 1, MOST_CREDIT + 1, 2**64])
async def test_no_more_is_under_way_than_either_side_holds(agent, monkeypatch, window: int) -> None:
    monkeypatch.setattr(agent_ports, "WINDOW", window)
    async with served(echo) as port:
        with pytest.raises(GuestError, match="older than the ports of this vmfork") as told:
            await agent.open_tunnel(port)
    assert "build the image" in told.value.hint
    await agent.ping()


async def test_a_program_that_ends_in_the_middle_is_an_error_behind_what_it_said(agent) -> None:
    script = "import os, socket\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1], flush=True)\n"
    script += "c, _ = s.accept(); c.recv(1); c.send(b'half'); c.recv(1); os.kill(os.getpid(), 9)"
    async with await agent.start_exec(Command(["python3", "-c", script])) as process:
        port = int((await anext(process.output()))[1])
        async with await agent.open_tunnel(port) as connection:
            # The last byte, which it never reads, makes its end a reset.
            await connection.write(b"go!")
            assert await connection.read() == b"half"
            with pytest.raises(PortError, match="lost") as told:
                await read_all(connection)
            assert told.value.reason == "reset"


async def test_a_slow_reader_stops_the_writer_and_a_slow_program_stops_us(agent) -> None:
    sent = 0

    async def pour(_reader: object, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < PLENTY:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with served(pour) as port, await agent.open_tunnel(port) as connection:
        with pytest.raises(DeadlineExceeded):
            await connection.write(b"y" * PLENTY, timeout_s=0.5)
        before = -1
        while before != sent:  # until all that lies between is full
            before = sent
            await agent.ping()
        assert sent < PLENTY
        await connection.read()
        await connection.abort()  # to close it would wait for a program that reads nothing


async def test_a_read_waits_no_longer_than_it_may(agent) -> None:
    async with served(total) as port, await agent.open_tunnel(port) as connection:
        with pytest.raises(DeadlineExceeded, match=f"port {port}"):
            await connection.read(timeout_s=0.05)
        await connection.write_eof()
        assert len(await read_all(connection)) == 64


async def test_megabytes_go_through_whole_both_ways(agent) -> None:
    size = 20_000_000
    block = os.urandom(1_000_000)
    want = hashlib.sha256(block * 20).hexdigest()

    async def give(_reader: object, writer: asyncio.StreamWriter) -> None:
        writer.write(block * 20)
        await writer.drain()

    async with served(give) as giving, served(total) as taking, forwarded(agent, taking) as forward:
        async with await agent.open_tunnel(giving) as connection:
            data = await read_all(connection)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, want)
        reader, writer = await connect(forward.host_port)
        writer.write(data)
        writer.write_eof()
        assert (await reader.read()).decode() == want
        writer.close()


async def test_as_many_as_may_be_open_are_served_and_one_more_has_its_turn(agent) -> None:
    async with served(echo) as port, AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(await agent.open_tunnel(port)) for _ in range(MOST_TUNNELS)]
        await asyncio.gather(*(each.write(b"%d" % number) for number, each in enumerate(connections)))
        answers = await asyncio.gather(*(each.read() for each in connections))
        assert answers == [b"%d" % number for number in range(MOST_TUNNELS)]
        # Neither programs nor files wait for them.
        assert (await agent.exec(Command(["echo", "up"])))[1] == b"up\n"
        with pytest.raises(DeadlineExceeded):
            await agent.open_tunnel(port, timeout_s=0.05)
        waiting = asyncio.ensure_future(agent.open_tunnel(port))
        await connections[0].aclose()
        async with await waiting as connection:
            await connection.write(b"my turn")
            assert await connection.read() == b"my turn"


async def test_a_thousand_connections_leave_nothing(agent) -> None:
    async with served(echo) as port, forwarded(agent, port) as forward:

        async def use(number: int) -> None:
            reader, writer = await connect(forward.host_port)
            writer.write(b"%d" % number)
            assert await reader.read(100) == b"%d" % number
            if number % 3 == 0:
                writer.write_eof()
                assert await reader.read() == b""
            writer.close()

        async def refused() -> None:
            with pytest.raises(PortError):
                await agent.open_tunnel(free_port())

        await use(0)
        while forward._carrying:
            await asyncio.wait(forward._carrying)
        await agent.ping()
        pid = agent_pid()
        before = open_files(pid), open_files("self")
        for number in range(0, 1000, 20):
            await asyncio.gather(*(use(number + each) for each in range(20)), refused())
        while forward._carrying:
            await asyncio.wait(forward._carrying)
        await agent.ping()
        assert open_files(pid) == before[0]
        # Callers and the service are of this process too, and close in their own time.
        while open_files("self") >= before[1] + 10:
            await agent.ping()


async def test_a_frozen_machine_has_no_connections(agent) -> None:
    async with served(echo) as port, forwarded(agent, port) as forward:
        reader, writer = await connect(forward.host_port)
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        async with await agent.open_tunnel(port) as connection:
            await agent.quiesce()
            with pytest.raises(PortError, match="before the machine is frozen"):
                await connection.read()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        # The port still leads there.
        reader, writer = await connect(forward.host_port)
        writer.write(b"b")
        assert await reader.read(1) == b"b"
        writer.close()


async def test_a_client_of_a_port_that_refuses_is_reset(agent) -> None:
    async with forwarded(agent, free_port()) as forward:
        reader, writer = await connect(forward.host_port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_a_client_that_dies_is_a_reset_in_the_guest(agent) -> None:
    lost = asyncio.Event()

    async def give(_reader: object, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            lost.set()

    async with served(give) as port, forwarded(agent, port) as forward:
        reader, writer = await connect(forward.host_port)
        await reader.read(1)
        writer.transport.abort()
        await asyncio.wait_for(lost.wait(), LIMIT_S)


async def test_the_port_ends_with_its_owner_with_its_agent_and_takes_connections_along(agent) -> None:
    async with served(echo) as port:
        forward = start_forward(agent, port, LOOPBACK)
        reader, writer = await connect(forward.host_port)
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        await forward.aclose()
        await forward.aclose()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionRefusedError):
            await connect(forward.host_port)
        writer.close()
        with_agent = start_forward(agent, port, LOOPBACK)
        await agent.aclose()
        await with_agent.aclose()
        with pytest.raises(ConnectionRefusedError):
            await connect(with_agent.host_port)


async def test_a_descriptor_that_a_closed_port_had_is_free_for_others(agent) -> None:
    loop = asyncio.get_running_loop()
    forward = start_forward(agent, free_port(), LOOPBACK)
    await asyncio.sleep(0)  # it waits for a caller
    number = forward._listener.fileno()
    reading, writing = os.pipe()
    closing = asyncio.ensure_future(forward.aclose())
    while forward._listener.fileno() >= 0:
        await asyncio.sleep(0)
    os.dup2(reading, number)
    os.close(reading)
    told = asyncio.Event()
    loop.add_reader(number, told.set)
    await closing
    os.write(writing, b"x")
    await asyncio.wait_for(told.wait(), LIMIT_S)
    loop.remove_reader(number)
    os.close(number)
    os.close(writing)


async def test_a_socket_of_the_host_leads_into_the_guest(agent, tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    async with served(echo) as port:
        async with start_forward(agent, port, parse_address(str(path))) as forward:
            assert (forward.path, forward.host_port, forward.host) == (str(path), 0, "")
            assert path.stat().st_mode & 0o777 == 0o600
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"a")
            assert await reader.read(1) == b"a"
            writer.close()
        assert not path.exists()


async def test_a_port_is_waited_for_and_nobody_calls(agent) -> None:
    called = asyncio.Event()

    async def note(_reader: object, _writer: object) -> None:
        called.set()

    async with served(note) as port:
        await wait_listening(agent, port, timeout_s=LIMIT_S)
    async with served(note, "::1") as port:
        await wait_listening(agent, port, timeout_s=LIMIT_S)
        waiting = asyncio.ensure_future(wait_listening(agent, free := free_port(), timeout_s=LIMIT_S))
        late = await asyncio.start_server(note, "127.0.0.1", free)
        await waiting
        late.close()
    with pytest.raises(DeadlineExceeded, match="waiting for somebody to listen at port"):
        await wait_listening(agent, free_port(), timeout_s=0.05)
    assert not called.is_set()


@asynccontextmanager
async def reversed_to(agent: AgentClient, address: HostAddress) -> AsyncIterator[Reverse]:
    async with await start_reverse(agent, free_port(), address, timeout_s=LIMIT_S) as reverse:
        yield reverse


async def test_a_port_of_the_guest_leads_to_a_service_of_the_host(agent) -> None:
    data = os.urandom(1_000_000)
    async with served(total) as port, reversed_to(agent, HostAddress("127.0.0.1", port)) as reverse:

        async def call() -> None:
            reader, writer = await connect(reverse.guest_port)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(data).hexdigest().encode()
            writer.close()

        await asyncio.gather(*(call() for _ in range(40)))
        with pytest.raises(PortError, match="somebody listens at that port") as told:
            await start_reverse(agent, reverse.guest_port, LOOPBACK, timeout_s=LIMIT_S)
        assert told.value.reason == "exists"


async def test_a_port_of_the_guest_whose_service_is_not_there_resets(agent) -> None:
    async with reversed_to(agent, HostAddress("127.0.0.1", free_port())) as reverse:
        reader, writer = await connect(reverse.guest_port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


@pytest.mark.parametrize("how", ["closed", "frozen", "lost"])
async def test_a_port_of_the_guest_ends_with_its_owner_the_freeze_and_the_agent(agent, how: str) -> None:
    async with served(echo) as port:
        reverse = await start_reverse(agent, free_port(), HostAddress("127.0.0.1", port), timeout_s=LIMIT_S)
        reader, writer = await connect(reverse.guest_port)
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        if how == "closed":
            await reverse.aclose()
        elif how == "frozen":
            await agent.quiesce()
        else:
            await agent.aclose()
        await reverse.wait_closed()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(reverse.guest_port)
        await reverse.aclose()


async def test_what_is_not_there_cannot_be_attached(agent) -> None:
    listening = await agent.listen(free_port())
    with pytest.raises(PortError, match="no such connection"):
        await agent.attach(listening, 1, port=1)
    for port in (0, 65_536):
        with pytest.raises(PortError, match="a port from 1 to 65535"):
            await agent.listen(port)
    agent.abandon(listening)
    await agent.ping()


async def test_callers_that_nobody_attaches_wait(agent) -> None:
    """Those that the agent took, and more with the kernel; all are reset when nobody listens any more."""
    listening = await agent.listen(port := free_port())
    callers = [await connect(port) for _ in range(MOST_CALLERS + 4)]
    numbers = [await listening.next_caller() for _ in range(MOST_CALLERS)]
    assert numbers == [*range(1, MOST_CALLERS + 1)]
    async with await agent.attach(listening, numbers[5], port=port) as connection:
        await connection.write(b"hello")
        assert await callers[5][0].read(5) == b"hello"
        assert await listening.next_caller() == MOST_CALLERS + 1
    agent.abandon(listening)
    for number, (reader, writer) in enumerate(callers):
        if number != 5:
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        writer.close()


async def test_one_who_calls_while_there_are_no_descriptors_is_taken_once_there_are(agent) -> None:
    listening = await agent.listen(port := free_port())
    taken = set(os.listdir(f"/proc/{(pid := agent_pid())}/fd"))
    free = next(number for number in range(len(taken) + 1) if str(number) not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + 1, 1024))  # one more may be open
    callers = [await connect(port) for _ in range(2)]
    first = await listening.next_caller()
    second = asyncio.ensure_future(listening.next_caller())
    await agent.ping()
    assert not second.done()
    async with await agent.attach(listening, first, port=port) as connection:
        callers[0][1].write(b"first")
        assert await connection.read(timeout_s=LIMIT_S) == b"first"
    async with await agent.attach(listening, await asyncio.wait_for(second, LIMIT_S), port=port) as connection:
        callers[1][1].write(b"second")
        assert await connection.read(timeout_s=LIMIT_S) == b"second"
    for _, writer in callers:
        writer.close()
    agent.abandon(listening)


async def test_an_agent_says_that_it_has_ports(agent) -> None:
    await agent.check_ports()


async def test_a_name_leads_to_an_address_of_its_own_where_the_same_port_is_another(agent, tmp_path: Path) -> None:
    hosts = tmp_path / "etc" / "hosts"
    names = Names(agent, hosts=str(hosts))
    port = free_port()
    async with (
        served(total) as one,
        served(echo) as other,
        await names.open("db") as db,
        await names.open("cache") as cache,
    ):
        first = await start_reverse(agent, port, HostAddress("127.0.0.1", one), at=db.address, timeout_s=LIMIT_S)
        second = await start_reverse(agent, port, HostAddress("127.0.0.1", other), at=cache.address, timeout_s=LIMIT_S)
        async with first, second:
            reader, writer = await asyncio.open_connection(cache.address, port)
            writer.write(b"a")
            assert await reader.read(1) == b"a"
            writer.close()
            with pytest.raises(PortError, match="somebody listens"):
                await agent.listen(port, address=db.address)
        assert hosts.read_text().splitlines()[:2] == [f"{name.address}\t{name.name}\t# vmfork" for name in (cache, db)]
        async with await names.open("DB.") as again:
            assert again.address == db.address
        assert "\tdb\t" in hosts.read_text()
    assert hosts.read_text().startswith("127.0.0.1\tlocalhost\n")
    for wrong in ("localhost", "a.localhost", "", "127.0.0.1", "a b"):
        with pytest.raises(ConfigError):
            await names.open(wrong)
    with pytest.raises(GuestError, match=r"at 127\.0\.0\.1 alone"):
        await agent.listen(port, address="10.0.0.1")  # the answer of an agent that knows no addresses


async def test_clients_that_give_names_at_the_same_time_lose_none(agent, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    clients = [Names(agent, hosts=str(hosts), folder=tmp_path) for _ in range(4)]
    given = await asyncio.gather(*(names.open(f"db{number}") for number, names in enumerate(clients)))
    assert len({name.address for name in given}) == len(given)
    for name in given:
        assert f"{name.address}\t{name.name}\t# vmfork\n" in hosts.read_text()
    await asyncio.gather(*(name.aclose() for name in given))
    assert "# vmfork" not in hosts.read_text()


async def test_a_client_that_stands_still_while_it_gives_a_name_stops_no_other_for_ever(
    agent, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(network_names, "_LIMIT_S", 0.05)
    names = Names(agent, hosts=str(tmp_path / "hosts"), folder=tmp_path)
    async with locked_folder(tmp_path, wait_s=0):
        with pytest.raises(StoreBusy):
            await names.open("db")
    assert not (tmp_path / "hosts").exists()


async def test_names_of_a_machine_whose_folder_is_gone_end_with_it(agent, tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    folder.mkdir()
    name = await Names(agent, hosts=str(tmp_path / "hosts"), folder=folder).open("db")
    folder.rmdir()
    await name.aclose()
    assert "db" not in (tmp_path / "hosts").read_text()
