"""Ports of a guest: a forwarded one beside a tunnel made by hand over the same line, and beside a program's streams."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import line_of
from benchmarks.suite.figures import Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from benchmarks.suite.peers import port_client
from benchmarks.suite.peers.raw_tunnel import RawTunnel

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM

_PORT = 9000
_SIZE, _QUICK_SIZE = 8_000_000, 4_000_000
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


def _call(what: str, address: tuple[str, int], size: int = 0) -> list[float]:
    """What a caller in a process of its own measured."""
    argv = [sys.executable, port_client.__file__, what, *map(str, address), str(size)]
    return [float(word) for word in subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.split()]


def _name(side: str, found: list[float]) -> dict[str, float]:
    return {f"{side}-connect": found[0], f"{side}-echo": found[1]}


async def _time_exec_out(vm: VM, size: int) -> float:
    async with vm.start(["sh", "-c", port_client.GIVE.format(size=size)]) as process:
        output = process.output()
        size -= len((await anext(output))[1]) - 1
        begun = time.perf_counter()
        while size:
            size -= len((await anext(output))[1])
        return time.perf_counter() - begun


async def _time_exec_in(vm: VM, size: int) -> float:
    async with vm.start(["sh", "-c", port_client.TAKE], stdin=True) as process:
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
            return _name("forward", await asyncio.to_thread(_call, "bytes", address))

        async def hand_made() -> dict[str, float]:
            with line_of(vm) as line, RawTunnel(line.sock, _PORT) as tunnel:
                return _name("raw", _call("bytes", tunnel.address))

        async def out() -> dict[str, float]:
            exec_s = await _time_exec_out(vm, size)
            return {"exec-out": exec_s, "forward-out": (await asyncio.to_thread(_call, "out", address, size))[0]}

        async def inwards() -> dict[str, float]:
            exec_s = await _time_exec_in(vm, size)
            return {"exec-in": exec_s, "forward-in": (await asyncio.to_thread(_call, "in", address, size))[0]}

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
        bounds="the guest's own loopback, and a socket more on the host, stand between; 256 KiB go in at a time",
        smaller_is_better=False,
    )


MEASURE = Measure(
    name="ports",
    title="Ports of a guest",
    unit="s",
    run=run,
    budget_s=20.0,
    is_asked_for=True,
    rows=(
        milliseconds("ports.connect", "forwarded port: connect to the first byte back", of="forward-connect"),
        milliseconds("ports.echo", "forwarded port: one byte there and back", of="forward-echo"),
        _over_hand("connect", "connect to the first byte, over a tunnel made by hand"),
        _over_hand("echo", "one byte there and back, over a tunnel made by hand"),
        _over_exec("out", "rate out of the guest, over that of a program's output"),
        _over_exec("in", "rate into the guest, over that of a program's input"),
    ),
)
