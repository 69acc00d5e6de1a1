"""The guide for Ray as it is printed, as far as one host allows: each command and program of it, over two nodes.

What differs: ports of this host for 6379 and 9100, the loopback for `first.example`, and `--block` behind `ray start`,
so that a node belongs to the test: `ray stop` ends every Ray of the host. Ray's dashboard is off.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, read_blocks
from tests.ports import free_port
from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.machine.folder import list_records, sweep_vms
from vmfork.store import TemplateStore

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]

GUIDE = ROOT / "docs" / "guides" / "cluster.md"
# Of each node: no more than a test needs, and no port that another Ray of the host may have.
_START = [
    "--block", "--num-cpus", "1", "--object-store-memory", "100000000",
    "--min-worker-port", "0", "--max-worker-port", "0",
]  # fmt: skip
_HEAD = ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
# Those below are Ray's own for its workers, and it refuses to take one of them for anything else.
_LEAST_PORT = 20_000
_END_LIMIT_S = 60.0


def find_port() -> int:
    while (port := free_port()) < _LEAST_PORT:
        pass
    return port


@dataclass
class Reader:
    """Follows the guide; what it has started is in `stack`. Each node has the next of `places`."""

    folder: Path
    places: list[Places]
    stack: ExitStack
    port: int = field(default_factory=find_port)
    metrics_port: int = field(default_factory=find_port)

    def follow(self, command: str) -> list[str]:
        """The words of the command, as they were run. What goes on begins, and has said that it does."""
        told = command.partition("#")[0].replace("first.example", "127.0.0.1")
        words = told.replace("6379", str(self.port)).replace("9100", str(self.metrics_port)).split()
        if words[:2] == ["ray", "start"]:
            is_head = "--head" in words
            more = [*_START, *(_HEAD if is_head else ()), "--dashboard-agent-listen-port", str(find_port())]
            more += ["--ray-client-server-port", str(find_port())] if is_head else []
            self._begin([*words, *more], "Ray runtime started", self.places.pop(0))
        elif "--serve" in words:
            self._begin(words, "", None)
        else:
            assert self.run(words), command
        return words

    def run(self, words: list[str]) -> str:
        """What the command printed; it went well."""
        done = subprocess.run(words, env=self._env(), cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def list_nodes(self) -> list[dict[str, Any]]:
        """The nodes that have told of themselves."""
        told: list[dict[str, Any]] = json.loads(self.run(["vmfork", "cluster", "nodes", "--json"]))
        return told

    def _begin(self, words: list[str], until: str, places: Places | None) -> None:
        process = subprocess.Popen(
            words, env=self._env(places), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.stack.callback(_end, process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if until in line:
                return
        raise AssertionError("".join(said))

    def _env(self, places: Places | None = None) -> dict[str, str]:
        env = {
            **os.environ,
            "HOME": str(self.folder),  # Ray writes the token of its clusters there
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if places is not None:
            del env["RAY_ADDRESS"]
            env |= {"VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)}
        return env


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=_END_LIMIT_S)


@pytest.fixture
def folder():
    """A short name: Ray has sockets in it."""
    made = Path(tempfile.mkdtemp(prefix="vg-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_it_works_as_printed(instance, folder) -> None:
    places = [Places(instance.home, folder / "run-1"), Places(folder / "home-2", folder / "run-2")]
    asyncio.run(Template.build("py", VMConfig(), places=places[0]))
    blocks = read_blocks(GUIDE)
    done = []
    try:
        with ExitStack() as stack:
            reader = Reader(folder, [*places], stack)
            consoles = [block for block in blocks if block.language == "console"]
            for command in (line for block in consoles for line in block.commands.splitlines()):
                words = reader.follow(command)
                done.append(" ".join(words[:3]))
                if "--serve" in words:
                    with urllib.request.urlopen(f"http://127.0.0.1:{reader.metrics_port}/metrics") as answer:
                        assert b"vmfork_node_machines" in answer.read()
            while len(told := reader.list_nodes()) < 2 or {each["state"] for each in told} != {"ready"}:
                pass  # the process of each begins when it is looked at
            (program,) = (block.text for block in blocks if block.language == "python")
            (folder / "program.py").write_text(program)
            node, release = reader.run([sys.executable, "program.py"]).split()
            assert node in reader.run(["vmfork", "cluster", "nodes"])
            assert release[0].isdigit()
            (folder / "program.py").write_text(program.replace('fork("py")', 'fork("py", label="zone=west")'))
            (west,) = (each["name"] for each in told if each["labels"].get("zone") == "west")
            assert reader.run([sys.executable, "program.py"]).split()[0] == west
            assert not [each for where in places for each in list_records(where.vms)]
    finally:
        for where in places:
            sweep_vms(where.vms)
            TemplateStore(where.templates).clear()  # as root each is a mount
    assert done[:2] == ["ray start --head", "ray start --address"]
    assert {"vmfork cluster status", "vmfork cluster nodes", "vmfork cluster metrics"} <= {*done}
