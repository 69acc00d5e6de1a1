"""A card that leads out by passt: what it reaches, what it does not, and that no passt outlives its machine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.rules.capabilities import find_own_address
from tests.timing import wait_until
from vmfork.aio import VM, Template
from vmfork.cli.found import describe
from vmfork.config import VMConfig, find_places
from vmfork.errors import ConfigError, HostError
from vmfork.machine.folder import find_record, sweep_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.host.process import ProcessIdentity
    from vmfork.machine.folder import VMRecord

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.needs("passt", "own-address")]

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def built(instance) -> Iterator[str]:
    template = asyncio.run(Template.build("passt", VMConfig(nic=True)))
    yield "passt"
    asyncio.run(template.remove())


@pytest.fixture
async def template(built) -> Template:
    return await Template.open(built)


@contextmanager
def served(host: str) -> Iterator[dict[str, int]]:
    """Whoever connects to `host` at the first port, or sends a datagram to the second, is told "from HOST"."""
    said = f"from {host}\n".encode()

    def answer_streams(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(said)

    def answer_datagrams(datagrams: socket.socket) -> None:
        while True:
            asked, caller = datagrams.recvfrom(100)
            if asked == b"end":
                return
            datagrams.sendto(said, caller)

    with socket.create_server((host, 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((host, 0))
        threads = [
            threading.Thread(target=answer_streams, args=(listener,)),
            threading.Thread(target=answer_datagrams, args=(datagrams,)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield {"tcp": listener.getsockname()[1], "udp": datagrams.getsockname()[1]}
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            datagrams.sendto(b"end", datagrams.getsockname())
            for thread in threads:
                thread.join()


# What a program of the guest meets, by TCP or by UDP: what it was told, or an error's number.
ASK = """
import socket, sys
host, port, kind, limit_s = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
try:
    asker = socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    asker.settimeout(limit_s)
    asker.connect((host, port))
    if kind == "udp":
        asker.send(b"who")
    print(asker.recv(100).decode(), end="")
except TimeoutError:
    print("silence")
except OSError as error:
    print(error.errno)
"""
# What a guest has for its own loopback goes out by its card, and is sent from the card's address.
SEND_LOOPBACK_OUT = """
set -e
echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
ip route del local 127.0.0.1 table local
ip route del local 127.0.0.0/8 table local
ip route add 127.0.0.0/8 via 10.0.2.2 src ADDRESS
ip route get 127.0.0.1
"""


async def ask(vm: VM, host: str, ports: dict[str, int], kind: str = "tcp", *, limit_s: float = 50.0) -> str:
    asked = ["python3", "-c", ASK, host, str(ports[kind]), kind, str(limit_s)]
    return (await vm.exec(asked, check=True, timeout_s=LIMIT_S)).stdout.strip()


async def carrier_of(vm: VM) -> str:
    return (await vm.shell("cat /sys/class/net/eth0/carrier", check=True, timeout_s=LIMIT_S)).stdout.strip()


def passt_of(vm: VM) -> ProcessIdentity:
    """The passt beside the machine, as the record of its folder names it."""
    outlet = record_of(vm).facts.outlet
    assert outlet is not None
    assert outlet.is_alive()
    return outlet


def record_of(vm: VM) -> VMRecord:
    record = find_record(find_places().vms / vm.id)
    assert record is not None
    return record


def is_of_lost_card(record: logging.LogRecord) -> bool:
    return getattr(record, "event", "") == "machine.card-lost"


async def test_it_reaches_what_the_host_reaches_and_nothing_by_the_hosts_loopback(template) -> None:
    own = find_own_address()
    with served(own) as ports, served("127.0.0.1") as hidden:
        async with await template.fork(card="passt") as vm:
            passt = passt_of(vm)
            assert vm.card.choice == "passt"
            assert await ask(vm, own, ports) == f"from {own}"
            assert await ask(vm, own, ports, "udp") == f"from {own}"
            # QEMU's user network leads the gateway's address to the host's loopback.
            assert "from" not in await ask(vm, "10.0.2.2", hidden, limit_s=1)
            # So would passt by itself, the frames to 127.0.0.1 of a guest whose root sends such.
            routed = await vm.shell(
                SEND_LOOPBACK_OUT.replace("ADDRESS", vm.card.address), check=True, timeout_s=LIMIT_S
            )
            assert "dev eth0" in routed.stdout
            assert "from" not in await ask(vm, "127.0.0.1", hidden, limit_s=1)
            assert "from" not in await ask(vm, "127.0.0.1", hidden, "udp", limit_s=1)
        assert not passt.is_alive()


async def test_a_passt_that_ends_is_told_and_what_is_forked_then_has_its_own(template, caplog) -> None:
    own = find_own_address()
    caplog.set_level(logging.WARNING, "vmfork")
    with served(own) as ports:
        async with await template.fork(card="passt") as vm:
            assert await carrier_of(vm) == "1"
            passt_of(vm).kill()
            async with asyncio.timeout(LIMIT_S):
                while await carrier_of(vm) != "0":
                    pass
                while not (told := [each for each in caplog.records if is_of_lost_card(each)]):
                    await asyncio.sleep(0.02)
            assert [(each.vm_id, each.levelname) for each in told] == [(vm.id, "WARNING")]
            with pytest.raises(ConfigError, match="has no carrier since"):
                await vm.freeze("passt-lost")
            (same,) = await vm.fork(card="passt")
            async with same:
                assert same.card.address != vm.card.address
                assert passt_of(same).is_alive()
                assert await ask(same, own, ports) == f"from {own}"


@pytest.mark.slow
async def test_forks_of_a_running_machine_have_each_a_passt_or_what_they_are_given(template) -> None:
    own = find_own_address()
    with served(own) as ports:
        async with await template.fork(card="passt") as parent:
            (same,) = await parent.fork(card="passt")
            (shut,) = await parent.fork()
            (kept,) = await parent.fork(card="restricted")
            async with same, shut, kept:
                assert passt_of(same) != passt_of(parent)
                assert [await ask(vm, own, ports) for vm in (parent, same)] == [f"from {own}"] * 2
                assert await ask(shut, own, ports) == "101"  # ENETUNREACH: the card is down
                assert "from" not in await ask(kept, own, ports, limit_s=1)
                with pytest.raises(ConfigError, match="QEMU's user network in its device state"):
                    await kept.fork(card="passt")
            async with await parent.checkpoint() as point:
                before = passt_of(parent)
                await parent.rollback(point)
                assert not before.is_alive()
                assert passt_of(parent) != before
                assert await ask(parent, own, ports) == f"from {own}"
            # passt leaves nothing in the state: its forks may have any card.
            frozen = await parent.freeze("passt-again")
            try:
                async with await frozen.fork() as plain, await frozen.fork(card="open") as opened:
                    assert plain.card.choice == "none"
                    assert await ask(opened, own, ports) == f"from {own}"
            finally:
                await frozen.remove()


OWNER = """
import os, signal, sys
import vmfork
vm = vmfork.Template.open("passt").fork(card="passt")
print(vm.id, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
async def test_nobodys_end_leaves_a_passt(template) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}, text=True
    )
    with owner:
        vm_id = owner.stdout.readline().strip()
        record = find_record(find_places().vms / vm_id)
        passt = record.facts.outlet
        assert passt.is_alive()
        owner.kill()
    wait_until(lambda: not passt.is_alive())
    await sweep_ended(find_places().vms / vm_id)
    async with await template.fork(card="passt") as vm:
        passt = passt_of(vm)
        os.kill(vm.pid, signal.SIGKILL)
        wait_until(lambda: not passt.is_alive())
    async with await template.fork(card="passt") as vm:
        passt = passt_of(vm)
        # Stopped, it does not see that its machine is gone: the keeper ends it.
        os.kill(passt.pid, signal.SIGSTOP)
    assert not passt.is_alive()


@pytest.mark.slow
async def test_a_machine_that_outlives_its_maker_has_its_passt_and_its_keeper_takes_the_carrier_down(template) -> None:
    own = find_own_address()
    with served(own) as ports:
        async with await template.start(card="passt", ttl_s=600) as vm:
            passt = passt_of(vm)
            assert await ask(vm, own, ports) == f"from {own}"
            assert describe(record_of(vm), None)["card"]["lost"] is False
            passt.kill()
            async with asyncio.timeout(LIMIT_S):
                while await carrier_of(vm) != "0":
                    pass
            assert describe(record_of(vm), None)["card"]["lost"] is True
            log = find_places().vms / vm.id / "qemu.log"
            wait_until(lambda: "passt has ended" in log.read_text())
            await vm.stop(grace_s=0)
        async with await template.start(card="passt", ttl_s=600) as vm:
            passt = passt_of(vm)
            async with await VM.attach(vm.id) as taken:
                assert await ask(taken, own, ports) == f"from {own}"
        wait_until(lambda: not passt.is_alive())


@pytest.mark.slow
async def test_what_keeps_its_emulator_in_is_as_without_a_card(template) -> None:
    async with await template.fork() as none, await template.fork(card="passt") as vm:
        assert none.isolation == vm.isolation
        has_own = "namespaces" in vm.isolation.parts
        ours, spaces = os.readlink("/proc/self/ns/net"), []
        for pid in (vm.pid, passt_of(vm).pid):
            with suppress(PermissionError):  # that of another user, or of a process that says so
                spaces.append(os.readlink(f"/proc/{pid}/ns/net") != ours)
        assert spaces[:1] == [has_own]
        assert True not in spaces[1:]
        if "user" in vm.isolation.parts:
            users = [os.stat(f"/proc/{pid}").st_uid for pid in (vm.pid, none.pid, passt_of(vm).pid)]
            assert len({*users}) == 3
            assert 65534 not in users


async def test_a_host_without_passt_is_told_before_anything_is_done(template, monkeypatch) -> None:
    monkeypatch.setattr("vmfork.host.passt.shutil", SimpleNamespace(which=lambda _: None))
    with pytest.raises(HostError, match="passt was not found on PATH") as error:
        await template.fork(card="passt")
    assert "apt-get install passt" in error.value.hint


@pytest.mark.slow
async def test_a_passt_that_does_not_come_up_is_told_with_what_it_said(template, tmp_path, monkeypatch) -> None:
    program = tmp_path / "passt"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo passt 1 && exit\necho no way; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match="passt ended as it started") as error:
        await template.fork(card="passt")
    assert "no way" in error.value.log
