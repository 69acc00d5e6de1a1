"""A network card in a template, and where it leads in each fork."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rules.capabilities import need
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 60.0
HOSTS_LOOPBACK = "10.0.2.2"
CARD = VMConfig(nic=True)
# What keeps its connection open goes on in a fork; it listens at the card's address too.
SERVER = "setsid python3 -m http.server 8000 --directory /run/vmfork >/dev/null 2>&1 &"
READY = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))'"


@pytest.fixture(scope="module")
def built(instance) -> Iterator[str]:
    template = asyncio.run(Template.build("card", CARD, warm_up=[SERVER], ready=READY))
    yield "card"
    asyncio.run(template.remove())


@pytest.fixture
async def template(built) -> Template:
    return await Template.open(built)


@contextmanager
def served(text: str) -> Iterator[int]:
    """A server on the host's loopback which says `text`; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


async def look(vm: VM) -> tuple[bool, str, list[str]]:
    """Whether the guest's card is up, its Ethernet address and its others."""
    told = json.loads((await vm.exec(["ip", "-j", "-4", "addr"], check=True, timeout_s=LIMIT_S)).stdout)
    link = json.loads((await vm.exec(["ip", "-j", "link"], check=True, timeout_s=LIMIT_S)).stdout)
    (card,) = (each for each in link if each["ifname"] != "lo")
    addresses = [a["local"] for each in told if each.get("ifname") == card["ifname"] for a in each["addr_info"]]
    return "UP" in card["flags"], card["address"], addresses


async def fetch(vm: VM, port: int, host: str = HOSTS_LOOPBACK) -> str:
    """What the server says; else how curl fails."""
    said = await vm.exec(["curl", "-sS", "-m", "50", f"http://{host}:{port}/"], timeout_s=LIMIT_S)
    return said.stdout if said.exit_code == 0 else f"curl {said.exit_code}"


async def test_a_card_that_leads_nowhere_is_down_and_each_forks_is_its_own(template) -> None:
    assert template.hardware.nic
    async with await template.fork() as one, await template.fork() as other:
        seen = [await look(vm) for vm in (one, other)]
        assert seen == [(False, vm.card.mac, []) for vm in (one, other)]
        assert one.card.mac != other.card.mac
        assert one.card.choice == "none"
        with served("never") as port:
            assert await fetch(one, port) == "curl 7"  # at once: no way leads there


async def test_an_open_card_reaches_the_loopback_of_the_host_and_a_restricted_one_nothing(template) -> None:
    with served("from the host") as port:
        async with await template.fork(card="open") as opened, await template.fork(card="restricted") as kept:
            assert [await look(vm) for vm in (opened, kept)] == [
                (True, vm.card.mac, [vm.card.address]) for vm in (opened, kept)
            ]
            assert opened.card.address != kept.card.address
            assert await fetch(opened, port) == "from the host"
            assert await fetch(kept, port) == "curl 7"
            assert (await opened.shell("cat /etc/resolv.conf")).stdout == "nameserver 10.0.2.3\n"
            # The gateway answers whoever asks: the card works, and what is beyond does not.
            assert "lladdr" in (await kept.shell("ip neigh show 10.0.2.2")).stdout
            # It announced itself as it came up, by the kernel.
            assert (await kept.shell("cat /proc/sys/net/ipv4/conf/eth0/arp_notify")).stdout == "1\n"
            # What comes in comes by the agent's line, with a card as without.
            async with kept.forward(8000) as forwarded:
                reader, writer = await asyncio.open_connection("127.0.0.1", forwarded.host_port)
                writer.write(b"GET /fork-id HTTP/1.0\r\n\r\n")
                assert (await reader.read()).split(b"\r\n\r\n")[1].strip().decode() == kept.id
                writer.close()


@pytest.mark.slow
async def test_a_microvm_has_a_card_too(instance) -> None:
    template = await Template.build("card-micro", VMConfig(machine="microvm", nic=True))
    try:
        with served("from the host") as port:
            async with (
                await template.fork() as none,
                await template.fork(card="restricted") as kept,
                await template.fork(card="open") as opened,
            ):
                assert [await look(vm) for vm in (none, kept, opened)] == [
                    (False, none.card.mac, []),
                    (True, kept.card.mac, [kept.card.address]),
                    (True, opened.card.mac, [opened.card.address]),
                ]
                assert len({vm.card.mac for vm in (none, kept, opened)}) == 3
                assert [await fetch(vm, port) for vm in (none, kept, opened)] == ["curl 7", "curl 7", "from the host"]
    finally:
        await template.remove()


@pytest.mark.slow
async def test_what_its_emulator_may_do_follows_its_card(template) -> None:
    async with (
        await template.fork() as none,
        await template.fork(card="restricted") as kept,
        await template.fork(card="open") as opened,
    ):
        assert none.isolation == kept.isolation
        isolation = opened.isolation
        assert isolation.level in ("none", "basic")
        assert isolation.missing[-1].startswith("network: its card is open")
        has_own, ours = "namespaces" in isolation.parts, os.readlink("/proc/self/ns/net")
        spaces = [os.readlink(f"/proc/{vm.pid}/ns/net") == ours for vm in (none, kept, opened)]
        assert spaces == [not has_own, not has_own, True]


@pytest.mark.slow
async def test_a_machine_that_requires_isolation_has_no_open_card(built) -> None:
    strict = await Template.open(built, config=VMConfig(require_isolation="namespaces"))
    try:
        async with await strict.fork(card="restricted"):
            pass
    except HostError:
        need("namespaces", found=False)
    with pytest.raises(HostError, match="its card is open"):
        await strict.fork(card="open")


@pytest.mark.slow
async def test_a_fork_of_a_running_machine_has_a_card_of_its_own(template) -> None:
    with served("from the host") as port:
        async with await template.fork(card="open") as parent:
            assert await fetch(parent, port) == "from the host"
            (same,) = await parent.fork(card="open")
            (shut,) = await parent.fork()
            async with same, shut:
                assert await look(same) == (True, same.card.mac, [same.card.address])
                # QEMU's user network is in the state of both: where nothing is asked for it is shut, and the card down.
                assert await look(shut) == (False, shut.card.mac, [])
                assert len({vm.card.mac for vm in (parent, same, shut)}) == 3
                assert [await fetch(vm, port) for vm in (same, shut, parent)] == [
                    "from the host",
                    "curl 7",
                    "from the host",
                ]


@pytest.mark.slow
async def test_a_machine_comes_back_to_a_checkpoint_with_its_card(template) -> None:
    with served("from the host") as port:
        async with await template.fork(card="open") as vm:
            assert await fetch(vm, port) == "from the host"
            before = vm.card
            async with await vm.checkpoint() as point:
                await vm.shell("rm -rf /root; echo lost > /run/vmfork/marker")
                await vm.rollback(point)
            assert vm.card.choice == "open"
            assert vm.card.mac != before.mac
            assert await look(vm) == (True, vm.card.mac, [vm.card.address])
            assert await fetch(vm, port) == "from the host"
            with pytest.raises(ConfigError, match="past a policy"):
                await vm.set_network("all")


@pytest.mark.slow
async def test_a_template_is_frozen_only_from_a_machine_whose_state_any_fork_can_take(template) -> None:
    async with await template.fork(card="restricted") as wired:
        with pytest.raises(ConfigError, match="user network in its device state"):
            await wired.freeze("card-wired")
        assert (await wired.exec(["true"])).exit_code == 0
    async with await template.fork() as plain:
        frozen = await plain.freeze("card-plain")
    try:
        with served("from the host") as port:
            async with await frozen.fork(card="open") as vm:
                assert await fetch(vm, port) == "from the host"
    finally:
        await frozen.remove()


@pytest.mark.slow
async def test_machines_with_a_card_change_hands_and_outlive_their_makers(template) -> None:
    with served("from the host") as port:
        async with await template.start(card="open", ttl_s=600) as vm:
            async with await VM.connect(vm.id) as other:
                assert other.card == vm.card
                assert await fetch(other, port) == "from the host"
            await vm.stop(grace_s=0)


async def test_what_a_card_cannot_be_is_refused(template, template_name) -> None:
    bare = await Template.open(template_name)
    for source, wanted, said in (
        (bare, {"card": "open"}, "has no network card"),
        (template, {"card": "wide"}, "'wide' is not 'none' or 'restricted' or 'open' or 'passt'"),
        (template, {"card": "open", "network": "all"}, "past a policy"),
    ):
        with pytest.raises(ConfigError, match=said) as raised:
            await source.fork(**wanted)
        assert raised.value.hint
    async with await bare.fork() as vm:
        assert vm.card is None
        with pytest.raises(ConfigError, match="has no network card"):
            await vm.fork(card="restricted")


@pytest.mark.slow
def test_the_guides_program_prints_what_is_shown(instance) -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "networks.md"
    section = page.read_text().split("## A network card\n")[1]
    ((program, shown),) = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", section, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.stdout, done.returncode) == (shown, 0), done.stderr
