"""The VM cache server as a process with real machines: takes, truth of the status, and deaths at every step."""

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
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.children import exit_code_of, fork_child
from tests.timing import wait_until
from tests.vm.cache_actor import CLIENT_STEPS, SERVER_STEPS
from tests.vm.cli_runner import COMMAND, Running, left_of, vmfork
from vmfork.aio import Factory
from vmfork.config import FactoryConfig, VMConfig, find_places
from vmfork.errors import Closed, HostError, VMNotFound
from vmfork.machine.base import BaseVM
from vmfork.machine.folder import sweep_vms
from vmfork.machine.handle import VMHandle
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc.cache_pb2_grpc import CacheStub
from vmfork.rpc.client import CacheClient

pytestmark = pytest.mark.vm

ACTOR = (sys.executable, str(Path(__file__).with_name("cache_actor.py")))
LIMIT_S = 60.0
# Seconds a machine waits for its taker where nobody is to see it end.
PATIENCE = "60"


@pytest.fixture
def endpoint():
    """The path of a socket in a folder of its own, of which nothing is left in the end."""
    folder = Path(tempfile.mkdtemp(prefix="vmfork-socket-", dir="/tmp"))
    yield folder / "cache.sock"
    left = sorted(path.name for path in folder.iterdir())
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def settings(template_name, endpoint) -> dict[str, str]:
    return {
        "VMFORK_FACTORY_TEMPLATE": "true",
        "VMFORK_FACTORY_TEMPLATE_NAME": template_name,
        "VMFORK_FACTORY_CACHE": "2",
        "VMFORK_FACTORY_ENDPOINT": str(endpoint),
    }


@contextmanager
def serving(settings, *, command=(*COMMAND, "factory", "init", "--json"), ends: bool = True, **more):
    """A server that serves; afterwards it was told to end, drained, and left nothing of its own."""
    with Running(command=command, env={**settings, **more}) as server:
        server.wait_for('"serving"', fd=1)
        yield server
        if ends:
            server.process.send_signal(signal.SIGTERM)
            assert server.end().status == 0


@contextmanager
def actor(*argv: str, settings=None):
    with subprocess.Popen(
        [*ACTOR, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(settings or {})},
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status_of(settings) -> dict:
    """What `vmfork factory status --json` prints, without the second a command takes to start."""
    with grpc.insecure_channel(f"unix:{settings['VMFORK_FACTORY_ENDPOINT']}") as channel:
        return json.loads(CacheStub(channel).Status(pb.StatusRequest(), timeout=LIMIT_S).document)


def wait_full(settings) -> dict:
    wait_until(lambda: status_of(settings)["pool"]["ready"] == 2)
    return status_of(settings)


def names_after_sweep() -> set[str]:
    """Folders of machines that somebody owns, or that a keeper still holds."""
    vms = find_places().vms
    sweep_vms(vms)
    return {path.name for path in vms.iterdir()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_init_serves_in_the_foreground_and_status_tells_the_truth(settings, endpoint) -> None:
    with serving(settings) as server:
        before = wait_full(settings)
        assert (before["on"], before["pid"], before["state"]) == (True, server.process.pid, "serving")
        assert before["endpoint"] == str(endpoint)
        assert {vm["pid"] for vm in before["vms"]} == {vm["pid"] for vm in before["vms"] if is_alive(vm["pid"])}
        with actor("take", "-", str(endpoint), PATIENCE, settings=settings) as taker:
            taken = json.loads(taker.stdout.readline())
            assert taken["id"] in {vm["id"] for vm in before["vms"]}
            during = json.loads(vmfork("factory", "status", "--json", env=settings).check().out)
            assert (during["pool"]["given"], [vm["pid"] for vm in during["live"]]) == (1, [taken["pid"]])
            assert during["live"][0]["client"] == f"process {taken['client']}"
            assert taken["id"] not in {vm["id"] for vm in during["vms"]}
            taker.stdin.write("go\n")
            taker.stdin.flush()
            assert taker.stdout.readline() == "here\n"
            shown = vmfork("factory", "status", env=settings).check().out
            assert "given: 1" in shown
            assert taken["id"] in shown
            taker.communicate("\n")
            assert taker.returncode == 0
        after = wait_full(settings)
        assert (after["live"], after["pool"]["given"], after["metrics"]["live_vms"]) == ([], 1, 0)
        memory = after["metrics"]["memory_bytes"]
        assert memory["shared"] > memory["private"] > 0
        assert (memory["shared"], memory["private"]) == (after["memory_shared_bytes"], after["memory_private_bytes"])
    template = json.loads(vmfork("factory", "status", "--json", env=settings).check().out)
    assert template["fingerprint"] == before["fingerprint"]
    assert vmfork("factory", "status", env={**settings, "VMFORK_FACTORY_TEMPLATE_NAME": "none"}).status == 3
    assert left_of(find_places().runtime) == []


def test_several_processes_at_once_get_each_machine_once(settings, endpoint) -> None:
    with serving(settings):
        clients = [
            subprocess.Popen([*ACTOR, "many", "4", str(endpoint)], stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        told = [json.loads(line) for client in clients for line in client.communicate(timeout=LIMIT_S)[0].splitlines()]
        assert [client.returncode for client in clients] == [0] * 4
        taken = [line for line in told if "id" in line]
        assert [line["fallbacks"] for line in told if "fallbacks" in line] == [{}] * 4
        assert len(taken) == len({line["id"] for line in taken}) == len({line["machine_id"] for line in taken}) == 16
        assert {line["exit"] for line in taken} == {0}
        metrics = status_of(settings)["metrics"]
        assert metrics["given"] == 16
        counts = {phase: told["count"] for phase, told in metrics["phase_seconds"].items()}
        assert counts == dict.fromkeys(("spawn", "load", "wait", "hand_over", "adopt", "first_exec"), 16) | {"fit": 0}
        assert metrics["phase_seconds"]["load"]["sum_s"] > metrics["phase_seconds"]["spawn"]["sum_s"] > 0


def test_a_server_killed_during_a_hand_over_leaves_no_machine(settings, endpoint) -> None:
    for step in SERVER_STEPS:
        # Each starts over what the one before it left.
        with serving(settings, command=(*ACTOR, "serve", step), ends=False) as server:
            held = wait_full(settings)["vms"]
            with actor("take", "-", str(endpoint), "1", settings=settings) as taker:
                assert server.process.wait(LIMIT_S) == -signal.SIGKILL, step
                assert taker.communicate(timeout=LIMIT_S)[0] == "", step  # no answer, so no machine
            wait_until(lambda held=held: not any(is_alive(vm["pid"]) for vm in held))
    with serving(settings):
        pass
    assert left_of(find_places().runtime) == []


def test_a_server_killed_after_its_answer_takes_nothing_away(settings, endpoint) -> None:
    with (
        serving(settings, ends=False) as server,
        actor("take", "-", str(endpoint), PATIENCE, settings=settings) as taker,
    ):
        taken = json.loads(taker.stdout.readline())
        server.process.kill()
        server.process.wait()
        taker.stdin.write("go\n")
        taker.stdin.flush()
        assert taker.stdout.readline() == "here\n"
        assert is_alive(taken["pid"])
        taker.communicate("\n")
        assert taker.returncode == 0
    with serving(settings):
        pass
    assert left_of(find_places().runtime) == []


def test_a_client_killed_during_a_hand_over_leaves_no_machine(settings, endpoint) -> None:
    with serving(settings):
        for number, step in enumerate(CLIENT_STEPS, 1):
            ttl_s = "1" if step == "answered" else PATIENCE
            with actor("take", step, str(endpoint), ttl_s, settings=settings) as taker:
                taken = json.loads(taker.stdout.readline())
                taker.stdin.write("go\n")
                taker.stdin.flush()
                assert taker.wait(LIMIT_S) == -signal.SIGKILL, step
            wait_until(lambda pid=taken["pid"]: not is_alive(pid))
            after = wait_full(settings)
            assert (after["live"], after["pool"]["given"]) == ([], number), step
            held = {vm["id"] for vm in status_of(settings)["vms"]}
            wait_until(lambda held=held: names_after_sweep() == held)


def test_a_client_killed_while_it_waits_takes_nothing(settings, endpoint) -> None:
    with serving(settings, VMFORK_FACTORY_CACHE="1") as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        with actor("take", "-", str(endpoint), PATIENCE, settings=settings) as taker:
            wait_until(lambda: any("socket" in target for target in targets_of(taker.pid)))
            taker.kill()
            taker.wait()
        os.kill(server.process.pid, signal.SIGCONT)
        wait_until(lambda: status_of(settings)["pool"]["ready"] == 1)
        wait_until(lambda: status_of(settings)["live"] == [])


def targets_of(pid: int) -> list[str]:
    """What the process has open; it may close any of it while it is looked at."""
    found = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def test_a_second_server_is_refused_by_name_and_changes_nothing(settings, endpoint) -> None:
    with serving(settings) as server:
        second = vmfork("factory", "init", env=settings)
        assert second.status == 1
        assert f"process {server.process.pid}" in second.err
        assert str(endpoint) in second.err
        assert status_of(settings)["pid"] == server.process.pid


def test_a_killed_server_leaves_a_socket_that_the_next_takes_over(settings, endpoint) -> None:
    with serving(settings, ends=False) as server:
        held = wait_full(settings)["vms"]
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(is_alive(vm["pid"]) for vm in held))
    assert endpoint.is_socket()
    assert vmfork("factory", "status", env={**settings, "VMFORK_FACTORY_TEMPLATE_NAME": "none"}).status == 3
    with serving(settings) as server:
        found = wait_full(settings)
        assert found["pid"] == server.process.pid
        assert {path.name for path in find_places().vms.iterdir()} == {vm["id"] for vm in found["vms"]}
    assert left_of(find_places().runtime) == []


def test_sigterm_drains_and_a_machine_given_out_runs_on(settings, endpoint) -> None:
    with (
        serving(settings, ends=False) as server,
        actor("take", "-", str(endpoint), PATIENCE, settings=settings) as taker,
    ):
        json.loads(taker.stdout.readline())
        taker.stdin.write("go\n")
        taker.stdin.flush()
        assert taker.stdout.readline() == "here\n"
        held = wait_full(settings)["vms"]
        server.process.send_signal(signal.SIGTERM)
        outcome = server.end()
        assert outcome.status == 0
        assert "draining" in outcome.err
        assert not any(is_alive(vm["pid"]) for vm in held)
        assert taker.poll() is None
        taker.communicate("\n")
        assert taker.returncode == 0


async def test_callers_that_wait_get_closed_when_it_drains(settings, endpoint) -> None:
    with serving(settings, VMFORK_FACTORY_CACHE="1", ends=False) as server:
        async with CacheClient(endpoint) as client:
            takes = [asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S, ttl_s=1.0)) for _ in range(6)]
            await asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED)
            assert await client.quit() == server.process.pid
            outcomes = await asyncio.gather(*takes, return_exceptions=True)
        assert (await asyncio.to_thread(server.end)).status == 0
    refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert {type(error) for error in refused} == {Closed}
    wait_until(lambda: not any(is_alive(reply.pid) for reply in outcomes if reply not in refused))
    wait_until(lambda: not names_after_sweep())


def test_destroy_drains_and_waits_for_the_end(settings, template_name) -> None:
    with serving(settings, ends=False) as server:
        # A template of that name is none of ours to remove here.
        done = vmfork("factory", "destroy", "--json", env={**settings, "VMFORK_FACTORY_TEMPLATE_NAME": "none"}).check()
        assert json.loads(done.out) == {"destroyed": False, "template": "none", "stopped_server": server.process.pid}
        assert server.process.wait(1) == 0
    again = vmfork("factory", "destroy", "--json", env={**settings, "VMFORK_FACTORY_TEMPLATE_NAME": "none"}).check()
    assert json.loads(again.out)["stopped_server"] is None


@pytest.mark.needs("root")
def test_another_user_is_turned_away_even_where_the_socket_lets_him(settings, endpoint) -> None:
    with serving(settings):
        assert endpoint.stat().st_mode & 0o777 == 0o600
        endpoint.parent.chmod(0o711)
        endpoint.chmod(0o666)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(LIMIT_S)
            assert exit_code_of(fork_child(lambda: check_turned_away(probe, endpoint))) == 0
        endpoint.parent.chmod(0o700)
        assert status_of(settings)["metrics"]["refused_connections"] == 1


def check_turned_away(probe: socket.socket, endpoint: Path) -> None:
    os.setuid(65534)
    with suppress(ConnectionResetError, BrokenPipeError):
        probe.connect(str(endpoint))
        probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert probe.recv(1) == b""


@pytest.mark.parametrize("verb", ["init", "status", "destroy"])
def test_an_endpoint_too_long_for_a_socket_is_wrong_input(verb) -> None:
    long = "/tmp/" + "x" * 103
    outcome = vmfork("factory", verb, env={"VMFORK_FACTORY_ENDPOINT": long, "VMFORK_FACTORY_CACHE": "1"})
    assert outcome.status == 2
    assert "at most 107 bytes, this one 108" in outcome.err


def test_more_machines_than_memory_is_refused_with_the_arithmetic(settings) -> None:
    outcome = vmfork("factory", "init", env={**settings, "VMFORK_FACTORY_CACHE": "60000"})
    assert outcome.status == 2
    assert "60000 machines of 64 MiB each need" in outcome.err
    assert "booting" not in outcome.err
    assert "give at most" in outcome.err


def test_systemd_is_told_that_it_is_ready_and_that_it_stops(settings, endpoint) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"{folder}/notify")
        supervisor.settimeout(LIMIT_S)
        with serving(settings, NOTIFY_SOCKET=f"{folder}/notify"):
            told = [supervisor.recv(4096).decode()]
            while "READY=1" not in told[-1]:
                told.append(supervisor.recv(4096).decode())
            assert f"STATUS=serving at {endpoint}" in told[-1]
            assert told[0] == "STATUS=starting"
        while "STOPPING=1" not in told[-1]:
            told.append(supervisor.recv(4096).decode())


async def test_health_and_reflection_answer(settings, endpoint) -> None:
    with serving(settings):
        async with grpc.aio.insecure_channel(f"unix:{endpoint}") as channel:
            for service in ("", "vmfork.cache.v1.Cache"):
                reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
                assert reply.status == health_pb2.HealthCheckResponse.SERVING

            async def ask():
                yield reflection_pb2.ServerReflectionRequest(list_services="")

            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            async for reply in stub.ServerReflectionInfo(ask()):
                names = {service.name for service in reply.list_services_response.service}
                assert {"vmfork.cache.v1.Cache", "grpc.health.v1.Health"} <= names


def read_unix_metrics(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while piece := reader.recv(65536):
            data += piece
    return data.decode()


@pytest.mark.parametrize("where", ["unix", "port"])
async def test_metrics_tell_each_phase_and_memory(settings, endpoint, where) -> None:
    address = f"unix:{endpoint.parent}/metrics.sock" if where == "unix" else "127.0.0.1:0"
    with serving(settings, VMFORK_FACTORY_METRICS=address):
        async with Factory(FactoryConfig(remote=True, endpoint=str(endpoint), fallback="boot")) as factory:
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                await vm.exec(["true"])
            async with await factory.get_vm(VMConfig(kernel_args="quiet")) as vm:
                assert vm.template == ""
            assert factory.stats().fallbacks == {"kernel_args": 1}
        wait_full(settings)
        if where == "unix":
            text = read_unix_metrics(endpoint.with_name("metrics.sock"))
        else:
            url = f"http://{status_of(settings)['metrics_address']}/metrics"
            with await asyncio.to_thread(urllib.request.urlopen, url) as reply:
                text = reply.read().decode()
        for phase in ("spawn", "load", "adopt", "first_exec"):
            assert f'vmfork_cache_phase_seconds_count{{phase="{phase}"}} 1.0' in text
        for line in (
            'vmfork_cache_phase_seconds_count{phase="fit"} 0.0',
            'vmfork_cache_fallbacks_total{reason="kernel_args"} 1.0',
            "vmfork_cache_hits_total 1.0",
            "vmfork_cache_misses_total 0.0",
            "vmfork_cache_pool_ready 2.0",
            "vmfork_cache_live_vms 0.0",
        ):
            assert line in text
        for kind in ("shared", "private"):
            line = next(line for line in text.splitlines() if f'memory_bytes{{kind="{kind}"}}' in line)
            assert float(line.split()[1]) > 0


async def test_a_hand_over_that_fails_is_tried_again_then_booted_and_told(settings, endpoint, monkeypatch) -> None:
    attach, failures = BaseVM.attach.__func__, [1, 3]

    async def failing(cls, handle: VMHandle) -> BaseVM:
        if failures[0]:
            failures[0] -= 1
            await (await attach(cls, handle)).aclose()
            raise VMNotFound(handle.id)
        return await attach(cls, handle)

    monkeypatch.setattr(BaseVM, "attach", classmethod(failing))
    with serving(settings):
        async with Factory(FactoryConfig(remote=True, endpoint=str(endpoint), fallback="boot")) as factory:
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template != ""
            failures[0] = 2
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template == ""
            assert (factory.stats().retries, factory.stats().fallbacks) == (2, {"vm-not-found": 1})
        assert status_of(settings)["metrics"]["fallbacks"] == {"vm-not-found": 1}


async def test_a_server_that_went_is_a_fallback_and_one_that_came_back_is_used(settings, endpoint) -> None:
    with serving(settings):
        factory = await Factory(FactoryConfig(remote=True, endpoint=str(endpoint), fallback="boot")).open()
    async with factory:
        async with await factory.get_vm() as vm:
            assert (vm.template, vm.source.kind, vm.source.reason) == ("", "booted", "host")
        assert factory.stats().fallbacks == {"host": 1}
        with serving(settings):
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template != ""
    with pytest.raises(HostError, match="no VM cache server"):
        await Factory(FactoryConfig(remote=True, endpoint=str(endpoint))).open()


async def test_a_machine_taken_from_a_server_is_grown_and_its_guest_says_so(endpoint, settings) -> None:
    config = VMConfig(max_memory_mib=512)
    async with Factory(FactoryConfig(vm=config, template=True, template_name="roomy")):
        pass
    try:
        with serving(settings, VMFORK_FACTORY_TEMPLATE_NAME="roomy", VMFORK_VM_MAX_MEMORY_MIB="512"):
            async with (
                Factory(FactoryConfig(remote=True, endpoint=str(endpoint), vm=config)) as factory,
                await factory.get_vm(VMConfig(memory_mib=512, max_memory_mib=512), timeout_s=LIMIT_S) as vm,
            ):
                total = (await vm.shell("awk '/MemTotal/ {print $2}' /proc/meminfo")).stdout
                assert int(total) > 400 * 1024
                assert factory.stats().choices == {"grown": 1}
            assert status_of(settings)["metrics"]["phase_seconds"]["fit"]["count"] == 1
    finally:
        vmfork("template", "rm", "roomy").check()
