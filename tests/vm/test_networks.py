"""Machines of one process that reach each other's services by name."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

import vmfork
from vmfork.aio import VM, Network, Template
from vmfork.errors import ConfigError, PortError

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 60.0
# Says whose it is to each who connects, and what it was told.
SERVER = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        name = open("/run/vmfork/fork-id").read().strip()
        self.wfile.write(f"{name}:{self.rfile.read().decode()}".encode())
socketserver.TCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", 5432), Handler).serve_forever()
"""
# Reset by then, a connection cannot be shut; reading says what it was.
CALL = """
import contextlib, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as s:
    s.sendall(sys.argv[3].encode())
    with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_WR)
    print(s.makefile().read())
"""


@pytest.fixture(scope="module")
def warm(instance):
    start = f"cat > /root/server.py <<'END'\n{SERVER}END\nsetsid python3 /root/server.py >/dev/null 2>&1 &"
    ready = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 5432))'"
    template = asyncio.run(Template.build("networks", warm_up=[start], ready=ready))
    yield "networks"
    asyncio.run(template.remove())


@pytest.fixture
async def forks(warm):
    template = await Template.open(warm)
    async with AsyncExitStack() as stack:
        vms = await template.fork_many(3)
        for vm in vms:
            stack.push_async_callback(vm.aclose)
        yield vms


async def call(vm, host: str, text: str, port: int = 5432) -> str:
    """What the service said; else the error's name."""
    said = await vm.exec(["python3", "-c", CALL, host, str(port), text], timeout_s=LIMIT_S)
    return said.stdout.strip() or said.stderr.strip().splitlines()[-1].partition(":")[0]


async def test_machines_reach_what_others_offer_by_name_and_nothing_else(forks) -> None:
    db, web, outside = forks
    network = Network("job")
    await db.join(network)
    await db.expose(5432, "db")
    await web.join(network)  # later than the service
    await web.join(network)
    await web.expose(5432, "web")
    assert network.services == ["db:5432", "web:5432"]
    assert await call(web, "db", "hello") == f"{db.id}:hello"
    assert await call(db, "web", "x" * 300) == f"{web.id}:{'x' * 300}"
    # Whoever has not joined, and whoever has and was not offered it.
    assert "gaierror" in await call(outside, "db", "hello")
    assert await call(web, "db", "hello", port=80) == "ConnectionRefusedError"
    await outside.join(network)
    assert await asyncio.gather(*(call(outside, name, "at once") for name in ("db", "web"))) == [
        f"{db.id}:at once",
        f"{web.id}:at once",
    ]


async def test_a_service_ends_with_its_machine_and_another_may_offer_it_again(forks) -> None:
    first, web, second = forks
    network = Network("job")
    for vm in forks:
        await vm.join(network)
    await first.expose(5432, "db")
    with pytest.raises(ConfigError, match="'db' is the name of another machine"):
        await second.expose(5432, "db")
    assert await call(web, "db", "one") == f"{first.id}:one"
    await first.aclose()
    assert await call(web, "db", "none") == "ConnectionResetError"
    await second.expose(5432, "db")
    assert await call(web, "db", "two") == f"{second.id}:two"


async def test_what_two_clients_of_a_machine_name_at_once_is_all_found(warm, forks) -> None:
    one, other, _ = forks
    networks = {"one": Network("first"), "other": Network("second")}
    for vm, (name, network) in zip((one, other), networks.items(), strict=False):
        await vm.join(network)
        await vm.expose(5432, name)
    template = await Template.open(warm)
    async with template.start(ttl_s=600) as vm, VM.connect(vm.id) as second:
        await asyncio.gather(vm.join(networks["one"]), second.join(networks["other"]))
        assert await call(vm, "one", "x") == f"{one.id}:x"
        assert await call(vm, "other", "y") == f"{other.id}:y"
        await vm.stop(grace_s=0)


async def test_a_socket_of_the_host_leads_from_one_machine_into_another_where_no_network_is(forks, tmp_path) -> None:
    db, web, _ = forks
    path = str(tmp_path / "db.sock")
    async with db.forward(5432, path), web.reverse(path, 5000):
        assert await call(web, "127.0.0.1", "hello", port=5000) == f"{db.id}:hello"


async def test_what_cannot_be_offered_or_reached_is_refused_and_leaves_nothing(forks) -> None:
    db, web, _ = forks
    network = Network("job")
    with pytest.raises(ConfigError, match="has joined no network"):
        await db.expose(5432, "db")
    for wrong in ("job", None):
        with pytest.raises(ConfigError, match="is no network"):
            await db.join(wrong)
    await db.join(network)
    await web.join(network)
    for port, name in ((0, "db"), (65_536, "db"), (5432, ""), (5432, "10.0.0.1"), (5432, "a b"), (5432, "localhost")):
        with pytest.raises(ConfigError):
            await db.expose(port, name)
    before = await web.read_file("/etc/hosts")
    everywhere = (
        "import socket, time; s = socket.create_server(('0.0.0.0', 80)); print('up', flush=True); time.sleep(99)"
    )
    async with web.start(["python3", "-c", everywhere]) as server:
        await anext(server.output())
        with pytest.raises(PortError, match="somebody listens"):
            await db.expose(80, "db")
    assert (network.services, await web.read_file("/etc/hosts")) == ([], before)
    with pytest.raises(ConfigError, match="not a name"):
        Network("no name")


def test_blocking_callers_have_the_same(warm) -> None:
    network = vmfork.Network("job")
    template = vmfork.Template.open(warm)
    with template.fork() as db, template.fork() as web:
        for vm in (db, web):
            vm.join(network)
        db.expose(5432, "db")
        said = web.exec(["python3", "-c", CALL, "db", "5432", "hello"], timeout_s=LIMIT_S, check=True)
        assert said.stdout.strip() == f"{db.id}:hello"
