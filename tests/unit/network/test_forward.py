"""A forwarded port and its callers, without a guest."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import warnings
from contextlib import suppress

import pytest

from tests.children import exit_code_of, fork_child
from vmfork.network.address import HostAddress
from vmfork.network.forward import drop, hold, lead_to, start_forward
from vmfork.wire.frame import MOST_TUNNELS


class Agent:
    """Nobody is ever connected by it."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.asked = asyncio.Event()

    async def begin_tunnel(self, _port: int) -> None:
        self.asked.set()
        await asyncio.get_running_loop().create_future()


async def test_a_caller_that_was_just_taken_when_the_port_is_closed_is_let_go() -> None:
    forward = start_forward(Agent(), 80, HostAddress("127.0.0.1"))
    with socket.create_connection(("127.0.0.1", forward.host_port), timeout=60) as client:
        async with asyncio.timeout(60):
            while not forward._carrying:
                await asyncio.sleep(0)
        gc.collect()  # what other tests left is not told here
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            await forward.aclose()  # the task that is to serve it has not begun
            gc.collect()
        assert [str(warning.message) for warning in told] == []
        assert client.recv(1) == b""


async def test_a_child_of_the_owner_keeps_no_port_open() -> None:
    forward = start_forward(Agent(), 80, HostAddress("127.0.0.1"))
    reading, writing = os.pipe()
    told, telling = os.pipe()

    def wait_for_parent() -> None:
        os.close(writing)
        os.write(telling, b".")  # what is done in a child before all else is done
        os.read(reading, 1)

    with socket.create_connection(("127.0.0.1", forward.host_port), timeout=60) as client:
        async with asyncio.timeout(60):
            while not forward._carrying:
                await asyncio.sleep(0)
        child = fork_child(wait_for_parent)
        try:
            os.read(told, 1)
            await forward.aclose()
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", forward.host_port), timeout=60)
        finally:
            for end in (writing, reading, told, telling):
                os.close(end)
            assert exit_code_of(child) == 0


async def test_a_port_that_is_held_keeps_who_calls_for_the_machine_that_comes_after() -> None:
    agent = Agent()
    forward = start_forward(agent, 80, HostAddress("127.0.0.1"))
    at = "127.0.0.1", forward.host_port
    async with asyncio.timeout(60):
        caller = socket.create_connection(at, timeout=60)
        await agent.asked.wait()
        for _ in range(3):
            before, agent = agent, Agent()
            hold(forward)
            before.closed.set_result(None)  # it ends, and the port does not
            late = socket.create_connection(at, timeout=60)
            await asyncio.gather(*forward._carrying, forward._accepting, return_exceptions=True)
            assert not agent.asked.is_set()
            with caller, pytest.raises(ConnectionResetError):
                caller.recv(1)
            lead_to(forward, agent)
            await agent.asked.wait()
            caller = late
        caller.close()
        hold(forward)
        await asyncio.gather(*forward._carrying, forward._accepting, return_exceptions=True)
        assert forward._places._value == MOST_TUNNELS  # however often it was held, none is lost
        drop(forward)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(at, timeout=60)
        # What has ended is held and led by nobody.
        hold(forward)
        lead_to(forward, agent)
        await forward.wait_closed()
        await forward.aclose()
