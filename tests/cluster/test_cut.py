"""A node in a network of its own, which is cut: callers are told within seconds, and not when Ray gives it up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import NAME
from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.machine.folder import sweep_vms
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray", "root", "ip"), pytest.mark.limit_s(900)]

_HERE, _THERE = "10.213.77.1", "10.213.77.2"
# 10 s are promised; hosts are busy. Ray gives a node up after about a minute.
_SECONDS = 30.0

# Of a process of its own, as Ray has one cluster in each: says `ready`, and waits to hear that the network was cut.
_PROGRAM = """
import asyncio, json, sys, time
import vmfork
from vmfork.aio import Cluster
from vmfork.errors import NodeLost

async def main(address, template):
    async with Cluster.connect(address) as cluster:
        while len((await cluster.status())["nodes"]) < 2:
            await asyncio.sleep(0.5)
        await cluster.prefetch(template)
        vm = await cluster.fork(template, label="rack=far", key="k")
        running = asyncio.ensure_future(vm.exec(["sleep", "600"]))
        events = vm.stream(["sh", "-c", "echo one; exec sleep 600"])
        await anext(events)
        streaming = asyncio.ensure_future(anext(events))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        begun, took, told = time.monotonic(), [], []
        for call in (running, streaming, vm.exec(["true"])):
            try:
                await call
            except NodeLost as error:
                took.append(time.monotonic() - begun)
                told.append([error.node == vm.node, list(error.machines) == [vm.id]])
        begun = time.monotonic()
        async with await cluster.fork(template, key="k") as again:
            result = {"took": took, "told": told, "forked": time.monotonic() - begun, "moved": again.node != vm.node}
        print(json.dumps(result), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def _network() -> Iterator[str]:
    """A namespace that is joined to this host's by one line; its name."""
    name, here = f"vmfork-cut-{os.getpid()}", f"vfcut{os.getpid()}"
    with ExitStack() as stack:
        _run("ip", "netns", "add", name)
        stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", "far", "netns", name)
        _run("ip", "addr", "add", f"{_HERE}/30", "dev", here)
        _run("ip", "link", "set", here, "up")
        _run("ip", "-n", name, "addr", "add", f"{_THERE}/30", "dev", "far")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "far", "up")
        yield name


def _env(folder: Path) -> dict[str, str]:
    """Of nodes and program. Ray writes the token of its clusters to the home folder, and reads it there."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    return {**inherited, "PYTHONPATH": path, "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def _node(places: Places, env: dict[str, str], *options: str, inside: str = "") -> Iterator[None]:
    """One of Ray's, with all that it starts."""
    own = {**env, "VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)}
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *options]
    argv = ["ip", "netns", "exec", inside, *ray] if inside else ray
    log = places.runtime / "ray.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, env=own, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        end = time.monotonic() + 60
        while left := _list_processes(f"VMFORK_RUNTIME_DIR={places.runtime}"):  # agents notice that their parent ended
            assert time.monotonic() < end, left
            time.sleep(0.1)


def _list_processes(variable: str) -> list[str]:
    """Those that have it in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended
            if variable.encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
    return found


@contextmanager
def _cluster(instance: Places) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Its address, the namespace that its second node is in, and the environment of who joins it."""
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        homes = [instance.home, root / "home"]
        near, far = (Places(home, root / f"run-{number}") for number, home in enumerate(homes))
        for places in (near, far):
            places.home.mkdir(mode=0o700, exist_ok=True)
            places.runtime.mkdir(mode=0o700)
            stack.callback(TemplateStore(places.templates).clear)
            stack.callback(sweep_vms, places.vms)
        name = stack.enter_context(_network())
        asyncio.run(Template.build(NAME, VMConfig(), places=near))
        env, address = _env(root), f"{_HERE}:{_free_port()}"
        head = ["--head", f"--port={address.split(':')[1]}", f"--node-ip-address={_HERE}"]
        stack.enter_context(_node(near, env, *head))
        joins = [f"--address={address}", f"--node-ip-address={_THERE}", "--labels=rack=far"]
        stack.enter_context(_node(far, env, *joins, inside=name))
        yield address, name, env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HERE, 0))
        return int(probe.getsockname()[1])


def test_a_node_whose_network_is_cut_is_lost_within_seconds(instance) -> None:
    with _cluster(instance) as (address, name, env), ExitStack() as stack:
        argv = [sys.executable, "-c", _PROGRAM, address, NAME]
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        program = stack.enter_context(subprocess.Popen(argv, env=env, text=True, **piped))
        stack.callback(program.kill)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        _run("ip", "-n", name, "link", "set", "far", "down")
        # Else its end is told to nobody for a minute.
        stack.callback(_run, "ip", "-n", name, "link", "set", "far", "up")
        told, _ = program.communicate("cut\n", timeout=300)
    found = json.loads(told.splitlines()[-1])  # Ray says things on the way
    assert found["told"] == [[True, True]] * 3
    assert max(found["took"]) < _SECONDS
    assert found["moved"]
    assert found["forked"] < _SECONDS
