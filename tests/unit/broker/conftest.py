"""A broker with a machine: the keeper is the real one, the machine is a sleeper.

The broker is compiled with sanitizers, but for what is asked of the one that is shipped.

Its agent is the real one, as a process of the host, or the other end of the line in the hands of the test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.children import wait_gone
from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.host import broker as host_broker
from vmfork.host.broker import BROKER_SOCKET, StartingBroker
from vmfork.host.keeper import KeptProcess, Parked
from vmfork.host.sockets import connect_unix
from vmfork.wire.frame import PROTOCOL, encode_fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parents[3]
AGENT = ROOT / "src" / "vmfork" / "image" / "data" / f"agent-{os.uname().machine}"
TOKEN = b"t" * 16
GREETING = encode_fields(b"%d" % PROTOCOL, b"a test's", b"a-boot-id", b"notify")
LIMIT_S = 20


@pytest.fixture(scope="session")
def sanitized(objects, tmp_path_factory) -> Path:
    """The broker with sanitizers in it."""
    spec = importlib.util.spec_from_file_location("vmfork_build_of_broker", ROOT / "tools" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build  # dataclasses look their module up
    spec.loader.exec_module(build)
    (program,) = (each for each in build.PROGRAMS if each.sources.name == "broker")
    sources = [*sorted(program.sources.glob("*.c")), *program.borrowed]
    return objects.link(tmp_path_factory.mktemp("broker") / "broker", objects.compile(sources))


@pytest.fixture(autouse=True)
def broker_binary(request, monkeypatch, tmp_path) -> Iterator[None]:
    """The one with sanitizers, unless the test asks for the `shipped` one. None of them complained."""
    if "shipped" not in request.fixturenames:
        binary = request.getfixturevalue("sanitized")
        monkeypatch.setattr(host_broker, "find_broker", lambda: binary)
    yield
    log = tmp_path / "qemu.log"
    said = log.read_text() if log.exists() else ""
    assert "Sanitizer" not in said, said
    assert "runtime error" not in said, said


@pytest.fixture
def shipped() -> None:
    """The broker is the one that the package ships."""


class Brokered:
    """A machine that a broker owns, and what the test has of it."""

    def __init__(self, folder: Path, process: KeptProcess, broker_pid: int, guest: socket.socket) -> None:
        self.folder = folder
        self.process = process
        self.pid = broker_pid
        self.pidfd = os.pidfd_open(broker_pid)
        self.guest = guest

    let_go: Callable[[], None]
    """Its starter has it, or has ended: its times begin. Done already unless it was `held`."""

    def connect(self) -> socket.socket:
        return connect_unix(self.folder / BROKER_SOCKET)

    async def client(self) -> AgentClient:
        """One that was greeted. The test closes it, or ends with it."""
        client = await AgentClient.open(self.connect())
        await client.hello(take_over=False, timeout_s=LIMIT_S)
        return client

    def why_ended(self) -> str:
        """Once the broker has ended: what it left for others to read."""
        assert wait_gone(self.pidfd, limit_s=LIMIT_S)
        found = json.loads((self.folder / "ended.json").read_text())
        return str(found["reason"])

    def close(self) -> None:
        os.close(self.pidfd)
        self.guest.close()


@pytest.fixture
async def start(tmp_path) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as always:

        async def start(
            *, ttl_s: float = 0.0, idle_ttl_s: float = 0.0, agent: bool = True, held: bool = False
        ) -> Brokered:
            lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            log = os.open(tmp_path / "qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
            always.callback(os.close, lock)
            always.callback(os.close, log)
            agents = always.enter_context(ExitStack())
            process = KeptProcess.start(["sleep", "1000"], log_fd=log, listen_at=tmp_path / "keeper.sock", lock_fd=lock)
            always.push_async_callback(process.aclose)
            line, theirs = socket.socketpair()
            console, guest = socket.socketpair()
            with line, console:
                await process.park(Parked(line.fileno(), console.fileno(), log), token=TOKEN, ttl_s=60)
            process.release()
            if agent:
                start_agent(theirs, tmp_path, agents)
            broker = await StartingBroker.start(tmp_path, log_fd=log)
            always.callback(broker.close)
            await broker.take(token=TOKEN, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s, greeting=GREETING)
            if not held:
                broker.close()
            brokered = Brokered(tmp_path, process, broker.pid, guest)
            brokered.let_go = broker.close
            always.callback(brokered.close)
            brokered.peer = Peer(theirs) if not agent else None
            if not agent:
                always.callback(theirs.close)
            return brokered

        yield start


def start_agent(sock: socket.socket, folder: Path, agents: ExitStack) -> None:
    """It runs until the end of `agents`, when nobody may have its line any more."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    with sock:
        agent = subprocess.Popen(
            [AGENT, "--fd", str(sock.fileno()), "--root", str(root)], pass_fds=[sock.fileno()], env={"PATH": os.defpath}
        )
    # It ends with its line, and what it had started with it: killed in the midst of that it would leave some, stopped.
    agents.callback(agent.wait)
    agents.callback(end_by_itself, agent)


def end_by_itself(agent: subprocess.Popen[bytes]) -> None:
    try:
        agent.wait(LIMIT_S)
    finally:
        agent.kill()
