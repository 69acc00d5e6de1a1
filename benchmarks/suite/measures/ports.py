"""Ports of a guest: a forwarded one beside a tunnel made by hand over the same line, and beside a program's streams."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import line_of
from benchmarks.suite.figures import Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from benchmarks.suite.peers.raw_tunnel import RawTunnel

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM

_PORT = 9000
_ECHOES = 50
_CONNECTS = 5
_SIZE, _QUICK_SIZE = 20_000_000, 4_000_000
# The same programs give and take, whether at a port or under the agent. Each says when it is ready: what it costs to
# start one is no part of what is measured.
_GIVE = "printf r; head -c {size} /dev/zero"
_TAKE = "printf r; cat >/dev/null; printf k"

# The first byte says what a caller wants: e, each byte back; else the script that is to have the connection follows.
_SERVER = f"""
import socket, subprocess, threading
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    what = c.recv(1)
    if what == b"e":
        c.sendall(what)
        while data := c.recv(65536):
            c.sendall(data)
    else:
        script = c.recv(80).strip()
        subprocess.run(["sh", "-c", script], stdin=c, stdout=c)
    c.close()
s = socket.create_server(("127.0.0.1", {_PORT}), backlog=20)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
_START = f"""
cat > /tmp/server.py <<'END'
{_SERVER}
END
setsid python3 /tmp/server.py >/dev/null 2>&1 &
"""


def _time_bytes(address: tuple[str, int]) -> tuple[float, float]:
    """Seconds from the connect to the first byte that came back; and of one byte there and back."""
    begun = time.perf_counter()
    with socket.create_connection(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"e")
        client.recv(1)
        first, echoes = time.perf_counter() - begun, []
        for _ in range(_ECHOES):
            sent = time.perf_counter()
            client.sendall(b"x")
            client.recv(1)
            echoes.append(time.perf_counter() - sent)
    return first, statistics.median(echoes)


def _time_both(address: tuple[str, int], side: str) -> dict[str, float]:
    """The medians of some connections; the first, which pays for what is emulated anew, does not count."""
    found = [_time_bytes(address) for _ in range(_CONNECTS + 1)][1:]
    first, echo = (statistics.median(each) for each in zip(*found, strict=True))
    return {f"{side}-connect": first, f"{side}-echo": echo}


def _ask_for(client: socket.socket, script: str) -> float:
    """When the script was ready."""
    client.sendall(b"s" + script.encode().ljust(80))
    assert client.recv(1) == b"r"
    return time.perf_counter()


def _time_out(address: tuple[str, int], size: int) -> float:
    with socket.create_connection(address) as client:
        begun = _ask_for(client, _GIVE.format(size=size))
        while size:
            size -= len(client.recv(min(size, 65536)))
        return time.perf_counter() - begun


def _time_in(address: tuple[str, int], size: int) -> float:
    with socket.create_connection(address) as client:
        begun = _ask_for(client, _TAKE)
        client.sendall(bytes(size))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"k"
        return time.perf_counter() - begun


async def _time_exec_out(vm: VM, size: int) -> float:
    async with vm.start(["sh", "-c", _GIVE.format(size=size)]) as process:
        output = process.output()
        size -= len((await anext(output))[1]) - 1
        begun = time.perf_counter()
        while size:
            size -= len((await anext(output))[1])
        return time.perf_counter() - begun


async def _time_exec_in(vm: VM, size: int) -> float:
    async with vm.start(["sh", "-c", _TAKE], stdin=True) as process:
        output = process.output()
        await anext(output)
        begun = time.perf_counter()
        await process.write_stdin(bytes(size))
        await process.close_stdin()
        await anext(output)
        return time.perf_counter() - begun


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()
    size = _QUICK_SIZE if context.quick else _SIZE
    async with AsyncExitStack() as stack:
        vm = await stack.enter_async_context(template.fork())
        await vm.shell(_START, check=True, timeout_s=60)
        await vm.wait_for_port(_PORT, timeout_s=60)
        port = await stack.enter_async_context(vm.forward(_PORT))
        address = (port.host, port.host_port)

        async def forwarded() -> dict[str, float]:
            return await asyncio.to_thread(_time_both, address, "forward")

        async def hand_made() -> dict[str, float]:
            with line_of(vm) as line, RawTunnel(line.sock, _PORT) as tunnel:
                return _time_both(tunnel.address, "raw")

        async def out() -> dict[str, float]:
            exec_s = await _time_exec_out(vm, size)
            return {"exec-out": exec_s, "forward-out": await asyncio.to_thread(_time_out, address, size)}

        async def inwards() -> dict[str, float]:
            exec_s = await _time_exec_in(vm, size)
            return {"exec-in": exec_s, "forward-in": await asyncio.to_thread(_time_in, address, size)}

        sides = {"forward": forwarded, "raw": hand_made, "out": out, "in": inwards}
        await context.interleave(samples, sides, rounds=7, quick_rounds=2, warm_up=1)
    return samples


def _over_hand(what: str, text: str) -> Row:
    """What a forwarded port takes, over what a tunnel made by hand does."""
    return Row(
        key=f"ports.{what}-raw",
        text=text,
        kind="ratio",
        of=f"forward-{what}",
        to=f"raw-{what}",
        target=Target(at_most=1.25),
        bounds="an event loop with a task for each connection, where one by hand waits for two sockets",
    )


def _over_exec(way: str, text: str) -> Row:
    """How fast a forwarded port is, over a program's standard stream."""
    return Row(
        key=f"ports.{way}",
        text=text,
        kind="ratio",
        of=f"exec-{way}",
        to=f"forward-{way}",
        target=Target(at_least=0.9),
        bounds="the guest's own loopback, and a socket more on the host, stand between",
        smaller_is_better=False,
    )


MEASURE = Measure(
    name="ports",
    title="Ports of a guest",
    unit="s",
    run=run,
    budget_s=20.0,
    rows=(
        milliseconds("ports.connect", "forwarded port: connect to the first byte back", of="forward-connect"),
        milliseconds("ports.echo", "forwarded port: one byte there and back", of="forward-echo"),
        _over_hand("connect", "connect to the first byte, over a tunnel made by hand"),
        _over_hand("echo", "one byte there and back, over a tunnel made by hand"),
        _over_exec("out", "rate out of the guest, over that of a program's output"),
        _over_exec("in", "rate into the guest, over that of a program's input"),
    ),
)
