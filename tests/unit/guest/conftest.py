"""The agent as an ordinary process on the host: compiled with sanitizers, spoken to over a socket pair."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmfork.agent.client import AgentClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.sanitized import Objects

SOURCES = sorted((Path(__file__).parents[3] / "guest").glob("*.c"))
# It looks for leaks before it ends.
END_LIMIT_S = 60


@pytest.fixture(scope="session")
def build_dir() -> Iterator[Path]:
    """Not below pytest's own folder, which another user may not enter: some tests run the agent as one."""
    path = Path(tempfile.mkdtemp(prefix="vmfork-agent-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def agent_binary(objects: Objects, build_dir: Path) -> Path:
    return objects.link(build_dir / "agent", objects.compile(SOURCES))


@pytest.fixture(scope="session")
def compile_variant(objects: Objects, build_dir: Path) -> Callable[..., Path]:
    """An agent with other values than those of `version.h`."""
    told = [source for source in SOURCES if '#include "version.h"' in source.read_text()]
    others = [source for source in SOURCES if source not in told]

    def compile_it(name: str, *defines: str) -> Path:
        return objects.link(build_dir / name, objects.compile(told, *defines) + objects.compile(others))

    return compile_it


class RunningAgent:
    """An agent process and our end of its socket."""

    # What it writes to standard error, which in a machine is the console.
    says = ""

    def __init__(self, binary: Path, *args: str, user: int | None = None) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [binary, "--fd", str(theirs.fileno()), *args],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                env={
                    "PATH": "/usr/local/bin:/usr/bin:/bin",
                    "HOME": "/",
                    "LC_ALL": "C",
                    # Leaks are looked for too: the agent runs as long as its guest.
                    "ASAN_OPTIONS": "detect_leaks=1",
                },
            )

    def finish(self) -> None:
        """The agent ends with its socket, by itself, and says nothing else: no sanitizer complained."""
        self.sock.close()
        try:
            _, complaint = self.process.communicate(timeout=END_LIMIT_S)
        finally:
            self.process.kill()
        assert (self.process.returncode, complaint.decode()) == (0, self.says)


@pytest.fixture
def start_agent(agent_binary: Path) -> Iterator[Callable[..., RunningAgent]]:
    running: list[RunningAgent] = []

    def start(*args: str, binary: Path = agent_binary, user: int | None = None) -> RunningAgent:
        running.append(RunningAgent(binary, *args, user=user))
        return running[-1]

    yield start
    for agent in running:
        agent.finish()


@pytest.fixture
def start_mounting(
    start_agent: Callable[..., RunningAgent], agent_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunningAgent]:
    """As root: an agent whose mounts and host name nobody else sees, after a shell's command has mounted something."""

    def start(command: str, *args: str) -> RunningAgent:
        script = tmp_path_factory.mktemp("mounting") / "agent"
        run = f'{command} && exec "$@"'
        script.write_text(f"#!/bin/sh\nexec unshare --mount --uts sh -c '{run}' agent {agent_binary} \"$@\"\n")
        script.chmod(0o755)
        return start_agent(*args, binary=script)

    return start


@pytest.fixture
def root_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands before /etc and /run/vmfork."""
    path = tmp_path_factory.mktemp("root")
    (path / "etc").mkdir()
    return path


@pytest.fixture
async def agent(start_agent: Callable[..., RunningAgent], root_dir: Path) -> AsyncIterator[AgentClient]:
    """A client that has said hello."""
    running = start_agent("--root", str(root_dir))
    # A duplicate: the client closes its own, the agent's end is awaited when the test is over.
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        await client.hello(take_over=False, timeout_s=10)
        yield client
