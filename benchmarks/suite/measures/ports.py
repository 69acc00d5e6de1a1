"""Ports of a guest: a forwarded one beside a tunnel made by hand over the same line, and beside a program's streams."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from benchmarks.suite.peers.raw_tunnel import RawTunnel
from vmfork.bench import raw

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM

_PORT = 9000
_ECHOES = 50
_CONNECTS = 5
_SIZE, _QUICK_SIZE = 20_000_000, 4_000_000

# The first byte says what a caller wants: e, each byte back; z, so many zeros; s, to be told once so many have come.
_SERVER = f"""
import socket, threading
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    what = c.recv(1)
    if what == b"e":
        c.sendall(what)
        while data := c.recv(65536):
            c.sendall(data)
        c.close()
        return
    left = int(c.recv(20))
    if what == b"z":
        while left:
            left -= c.send(bytes(min(left, 65536)))
    while left:
        left -= len(c.recv(min(left, 65536)))
    c.sendall(b"k")
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
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", {_PORT}))' 2>/dev/null; do sleep 0.1; done
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


def _time_out(address: tuple[str, int], size: int) -> float:
    with socket.create_connection(address) as client:
        begun, left = time.perf_counter(), size + 1
        client.sendall(b"z" + f"{size:20}".encode())
        while left:
            left -= len(client.recv(min(left, 65536)))
        return time.perf_counter() - begun


def _time_in(address: tuple[str, int], size: int) -> float:
    with socket.create_connection(address) as client:
        begun = time.perf_counter()
        client.sendall(b"s" + f"{size:20}".encode() + bytes(size))
        client.recv(1)
        return time.perf_counter() - begun


async def _time_exec_out(vm: VM, size: int) -> float:
    begun = time.perf_counter()
    async with vm.start(["head", "-c", str(size), "/dev/zero"]) as process:
        async for _ in process.output():
            pass
    return time.perf_counter() - begun


async def _time_exec_in(vm: VM, size: int) -> float:
    begun = time.perf_counter()
    async with vm.start(["sh", "-c", "cat >/dev/null"], stdin=True) as process:
        await process.write_stdin(bytes(size))
        await process.close_stdin()
        await process.wait()
    return time.perf_counter() - begun


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()
    size = _QUICK_SIZE if context.quick else _SIZE
    async with AsyncExitStack() as stack:
        vm = await stack.enter_async_context(template.fork())
        await vm.shell(_START, check=True, timeout_s=60)
        port = await stack.enter_async_context(vm.forward(_PORT))
        address = (port.host, port.host_port)
        by_hand = stack.enter_context(raw.start(await context.raw_source(template)))
        by_hand.agent.call(raw.EXEC, raw.fields(b"", b"", b"", b"3", b"sh", b"-c", _START.encode()))
        tunnel = stack.enter_context(RawTunnel(by_hand.agent.sock, _PORT))

        async def forwarded() -> dict[str, float]:
            return await asyncio.to_thread(_time_both, address, "forward")

        async def hand_made() -> dict[str, float]:
            return await asyncio.to_thread(_time_both, tunnel.address, "raw")

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
        bounds="a tunnel made by hand sends before the guest has answered; two tasks carry each connection of ours",
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
        bounds="the guest's own loopback, and Python in it, stand between",
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
