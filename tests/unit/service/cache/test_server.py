"""What the calls do, over a pool of stand-ins."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.unit.service.stand_in import HARDWARE, StandInPool
from vmfork.config import FactoryConfig, VMConfig
from vmfork.errors import Closed, DeadlineExceeded, HostError, StoreBusy
from vmfork.factory.remote import open_remote
from vmfork.rpc.client import CacheClient
from vmfork.rpc.errors import OtherKind
from vmfork.rpc.status import Phase
from vmfork.service.cache import CacheServer
from vmfork.store.manifest import fingerprint_of

LIMIT_S = 30


async def test_config_tells_what_the_pool_holds(running_server, client) -> None:
    async with running_server():
        reply = await client.config()
    assert (dict(reply.traits), reply.cpus, reply.memory_mib, reply.server_version) == (
        {"accel": "tcg"},
        1,
        256,
        "1.2.3",
    )
    assert (reply.max_cpus, reply.max_memory_mib, json.loads(reply.hardware)["machine"]) == (2, 256, "pc-q35-7.2")
    assert json.loads(reply.config)["image"] == "default"


async def test_a_fingerprint_is_one_digest_wherever_it_is_told(running_server, client) -> None:
    """`factory status --json` of a template and of a server: the same key, so the same value for the same traits."""
    async with running_server() as running:
        status, config = await client.status(), await client.config()
    assert status.fingerprint == fingerprint_of(running.pool.kind.traits)
    assert status.kind == config.fingerprint == running.pool.kind.digest


async def test_each_machine_is_given_once(running_server, client, endpoint) -> None:
    async with running_server(filled=8) as running, CacheClient(endpoint) as other:
        replies = await asyncio.gather(*(c.get_base_vm(timeout_s=LIMIT_S) for c in (client, other) for _ in range(4)))
        assert len({reply.vm_id for reply in replies}) == 8
        assert {json.loads(reply.handle)["id"] for reply in replies} == {reply.vm_id for reply in replies}
        assert set(running.pool.where.values()) == {"parked"}
        numbers = (await client.status()).metrics
    assert (numbers["hits"], numbers["misses"], numbers["given"], numbers["live_vms"]) == (8, 0, 8, 8)
    assert numbers["phase_seconds"]["hand_over"]["count"] == 8


async def test_a_take_waits_for_a_machine_within_its_deadline(running_server, client) -> None:
    async with running_server(filled=1) as running:
        await client.get_base_vm(timeout_s=LIMIT_S, ttl_s=7)
        assert running.pool.ttls == [7]
        with pytest.raises(DeadlineExceeded):
            await client.get_base_vm(timeout_s=0.1)
        take = asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S))
        await running.pool.fill()
        assert not (await take).hit or running.pool.given == 2


async def test_takes_wait_for_the_start_and_health_tells_it(running_server, client, endpoint) -> None:
    async with running_server(filled=0) as running, grpc.aio.insecure_channel(f"unix:{endpoint}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "vmfork.cache.v1.Cache"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        status = await client.status()
        assert (status.on, status.state) == (False, Phase.STARTING)
        take = asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S))
        await running.pool.fill()
        await take
        await running.wait_for("serving")
        reply = await stub.Check(health_pb2.HealthCheckRequest(service="vmfork.cache.v1.Cache"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_stuck_pool_is_told_at_once_until_it_goes_on(running_server, client, endpoint) -> None:
    """Each client waited its whole time limit at each request, and the server said that it was on."""
    async with running_server() as running, grpc.aio.insecure_channel(f"unix:{endpoint}") as channel:
        pool, stub = running.pool, health_pb2_grpc.HealthStub(channel)
        pool.ready.clear()
        pool.unstuck.clear()
        pool.stuck.set()
        await running.wait_for("degraded")
        status = await client.status()
        assert (status.on, status.state, status.pool.last_error) == (False, Phase.DEGRADED, "no room")
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(HostError, match="its last start failed: no room"):
            await client.get_base_vm(timeout_s=10 * LIMIT_S)  # longer than a test may take
        pool.stuck.clear()
        pool.unstuck.set()
        async with asyncio.timeout(LIMIT_S):
            while running.states[-1] != "serving":
                await asyncio.sleep(0)
        assert (await client.status()).on
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_watchers_see_the_drain(running_server, client, endpoint) -> None:
    async with grpc.aio.insecure_channel(f"unix:{endpoint}") as channel:
        seen = []
        async with running_server():
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            seen.append((await watch.read()).status)
            await client.quit()
            seen.append((await watch.read()).status)
    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_reflection_describes_the_service(running_server, endpoint) -> None:
    def read() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"unix:{endpoint}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol("vmfork.cache.v1.Cache")
            return list(database.get_services()), [method.name for method in file.service[0].method]

    async with running_server():
        services, methods = await asyncio.to_thread(read)
    assert {"vmfork.cache.v1.Cache", "grpc.health.v1.Health"} <= set(services)
    assert methods == ["Config", "GetBaseVM", "Status", "Quit", "Report"]


async def test_quit_closes_while_callers_wait_and_leaves_nothing(running_server, client, endpoint) -> None:
    async with running_server(filled=0) as running:
        takes = [asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S)) for _ in range(10)]
        await running.pool.fill()
        done, waiting = await asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (1, 9)
        assert await client.quit() == os.getpid()
        for take in waiting:
            with pytest.raises(Closed):
                await take
        await asyncio.wait_for(running.task, LIMIT_S)
        assert running.states == ["starting", "serving", "draining"]
        with pytest.raises(HostError, match="no VM cache server is at"):
            await client.get_base_vm(timeout_s=1)
    assert list(endpoint.parent.iterdir()) == []
    assert set(running.pool.where.values()) == {"parked"}


async def test_quit_while_starting_ends_the_start(endpoint) -> None:
    opening = asyncio.Event()

    async def never():
        opening.set()
        await asyncio.Event().wait()

    server = CacheServer(endpoint, None, version="1")
    task = asyncio.create_task(server.run(never))
    await opening.wait()
    async with CacheClient(endpoint) as client:
        take = asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S))
        await client.quit()
        with pytest.raises(Closed):
            await take
    await asyncio.wait_for(task, LIMIT_S)
    assert list(endpoint.parent.iterdir()) == []


async def test_a_start_that_fails_is_told_and_leaves_nothing(endpoint) -> None:
    async def fail():
        raise HostError("no room")

    with pytest.raises(HostError, match="no room"):
        await CacheServer(endpoint, None, version="1").run(fail)
    assert list(endpoint.parent.iterdir()) == []


async def test_a_cancelled_server_leaves_nothing(running_server, endpoint) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with running_server() as running:
            running.task.cancel()
            await asyncio.wait({running.task})
            assert list(endpoint.parent.iterdir()) == []
            assert set(running.pool.where.values()) == {"ended"}


@pytest.mark.parametrize("when", ["waiting", "detaching"])
async def test_a_taker_that_goes_leaves_no_machine_behind(running_server, client, when) -> None:
    async with running_server(filled=1) as running:
        pool = running.pool
        if when == "waiting":
            pool.ready.clear()
        pool.detaching.clear()
        take = asyncio.create_task(client.get_base_vm(timeout_s=LIMIT_S))
        async with asyncio.timeout(LIMIT_S):
            while not (pool.ttls or (when == "waiting" and running.server.state.given._working)):
                await asyncio.sleep(0)
        take.cancel()
        await asyncio.wait({take})
        async with asyncio.timeout(LIMIT_S):
            # It has arrived there: an answer that was sent before is ended by the machine's keeper, which is none here.
            while when == "detaching" and not running.server.state.metrics.registry.numbers()["taken_back"]:
                await asyncio.sleep(0)
            pool.detaching.set()
            while running.server.state.given._working:
                await asyncio.sleep(0)
        assert "parked" not in pool.where.values()
        assert pool.where == ({"vm1": "held"} if when == "waiting" else {"vm1": "ended"})


async def test_a_hand_over_that_fails_ends_the_machine_and_is_told(running_server, client) -> None:
    async with running_server() as running:
        running.pool.detach_fails = True
        with pytest.raises(HostError, match="it does not let go") as caught:
            await client.get_base_vm(timeout_s=LIMIT_S)
        assert caught.value.hint == "try again"
        assert running.pool.where == {"vm1": "ended"}


# Made anew each time: an error keeps the frames that it passed, and with them a server.
@pytest.mark.parametrize("error", [lambda: OSError(24, "no descriptors"), lambda: HostError("damaged"), RuntimeError])
async def test_a_sweep_that_fails_is_made_again_and_ends_no_server(
    running_server, client, tmp_path, monkeypatch, error
) -> None:
    monkeypatch.setattr("vmfork.service.cache.server.SWEEP_INTERVAL_S", 0)
    swept = []

    def fail() -> int:
        swept.append(1)
        raise error()

    async with running_server() as running:
        monkeypatch.setattr(running.server.state.given, "count", fail)
        async with asyncio.timeout(LIMIT_S):
            while len(swept) < 3:
                await asyncio.sleep(0)
        monkeypatch.undo()
        assert running.states[-1] == "serving"
        await client.status()


async def test_a_second_server_is_refused_by_name(running_server, endpoint) -> None:
    async with running_server():
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            await CacheServer(endpoint, None, version="1").run(lambda: None)
        assert endpoint.is_socket()


async def test_reports_are_counted_and_nonsense_is_not(running_server, client) -> None:
    async with running_server():
        await client.report(vm_id="x", phases={"adopt": 0.004, "spawn": 9.0, "made-up": 1.0, "fit": float("nan")})
        for number in range(40):
            await client.report(fallback=f"reason {number}")
        numbers = (await client.status()).metrics
    phases = numbers["phase_seconds"]
    assert [phases[name]["count"] for name in ("adopt", "fit", "spawn")] == [1, 0, 0]
    assert (len(numbers["fallbacks"]), numbers["fallbacks"]["other"]) == (33, 8)


async def test_the_front_costs_well_below_a_millisecond(running_server, client, endpoint) -> None:
    """Measured against gRPC's own socket, the least of many calls, so that others on the host do not count.

    The bound is ten times what was seen.
    """
    async with running_server() as running:
        inner = endpoint.with_name("cache.sock.d") / "grpc.sock"
        async with CacheClient(inner) as direct:
            times = {client: [], direct: []}
            for _ in range(200):
                for each, spent in times.items():
                    begun = time.perf_counter()
                    await each.report()
                    spent.append(time.perf_counter() - begun)
            through, without = (min(spent) for spent in times.values())
        assert running.states[-1] == "serving"
    print(f"through the front {through * 1000:.2f} ms, without {without * 1000:.2f} ms")
    assert through - without < 0.001


async def test_each_template_has_a_pool_and_is_asked_for_by_name(running_server, client, endpoint) -> None:
    """A server of several templates held booted machines."""
    node = StandInPool(name="cache of node", template="node", recipe="warm", hardware=replace(HARDWARE, memory_mib=512))
    async with running_server(node, filled=2) as running:
        told = await client.config()
        assert [(each.template, each.warmed, each.recipe) for each in told.others] == [("node", True, "warm")]
        await client.get_base_vm(timeout_s=LIMIT_S)
        await client.get_base_vm(timeout_s=LIMIT_S, template="node", fingerprint=node.kind.digest)
        assert (running.pool.given, node.given) == (1, 1)
        with pytest.raises(OtherKind, match="ruby"):
            await client.get_base_vm(timeout_s=LIMIT_S, template="ruby")
        status = await client.status()
        assert (status.pool.size, status.pool.given, len(status.vms)) == (4, 2, 2)
        told = [(pool.template, pool.memory_mib, pool.pool.given) for pool in status.pools]
        assert told == [("", 256, 1), ("node", 512, 1)]
        # A client has a base for each.
        bases = await open_remote(FactoryConfig(endpoint=str(endpoint)))
        assert [(base.kind.template, base.kind.is_warmed, base.kind.hardware.memory_mib) for base in bases] == [
            ("", False, 256),
            ("node", True, 512),
        ]
        assert bases[1].kind.to_config(VMConfig(qemu="/ours")).qemu == "/ours"
        await asyncio.gather(*(base.aclose() for base in bases))


async def test_a_server_is_degraded_when_all_of_its_pools_are_stuck(running_server, client) -> None:
    node = StandInPool(name="cache of node", template="node")
    async with running_server(node) as running:
        node.ready.clear()
        node.unstuck.clear()
        node.stuck.set()
        with pytest.raises(HostError, match="its last start failed"):
            await client.get_base_vm(timeout_s=LIMIT_S, template="node")
        status = await client.status()
        assert (status.state, [pool.is_stuck for pool in status.pools]) == (Phase.SERVING, [False, True])
        await client.get_base_vm(timeout_s=LIMIT_S)
        running.pool.unstuck.clear()
        running.pool.stuck.set()
        await running.wait_for("degraded")
        node.stuck.clear()
        node.unstuck.set()
        async with asyncio.timeout(LIMIT_S):
            while running.states[-1] != "serving":
                await asyncio.sleep(0)
