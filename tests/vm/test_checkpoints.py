"""Machines that stand alone go back to what they were, by whichever client, and after their end."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.test_detached import keeper_of
from tests.vm.test_rollback import end_machine
from vmfork.aio import VM
from vmfork.config import find_places
from vmfork.errors import ConfigError, HostError, RolledBack, VMNotFound
from vmfork.freeze import rollback
from vmfork.host.process import wait_ended
from vmfork.machine.folder import sweep_vms

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 30


@pytest.fixture
async def alone(template):
    """A machine that stands alone, and its first client."""
    async with await template.start(name="back", labels={"job": "7"}, ttl_s=3600, idle_ttl_s=1800) as vm:
        yield vm
        async with await VM.connect(vm.id) as last:
            await last.stop(grace_s=0)
    assert not find_places().checkpoints.exists() or not list(find_places().checkpoints.iterdir())


async def test_a_client_brings_it_back_and_the_others_are_told(alone) -> None:
    await alone.write_file("/root/who", b"before")
    async with await alone.checkpoint() as point, await VM.connect("back") as other:
        running = asyncio.create_task(other.exec(["sleep", "1000"]))
        await other.ping()
        for _ in range(2):
            await alone.write_file("/root/who", b"after")
            await alone.rollback(point)
            assert await alone.read_file("/root/who") == b"before"
        with pytest.raises(RolledBack):
            await asyncio.wait_for(running, LIMIT_S)
        with pytest.raises(RolledBack):
            await other.ping()
        async with await VM.connect("back") as again:
            assert await again.read_file("/root/who") == b"before"
            assert (again.id, again.labels, again.generation) == (alone.id, {"job": "7"}, alone.generation)
    (record,) = await VM.list(label="job=7")
    assert (record.id, record.pid) == (alone.id, alone.pid)


async def test_its_times_to_live_go_on(alone) -> None:
    async with await alone.checkpoint() as point:
        before = json.loads(vmfork("show", "back", "--json").check().out)["ends_at"]
        await alone.rollback(point)
        assert json.loads(vmfork("show", "back", "--json").check().out)["ends_at"][:18] == before[:18]
        assert alone.facts.idle_ttl_s == 1800


async def test_a_rollback_that_fails_leaves_it_ended_and_it_is_brought_back_later(alone, monkeypatch) -> None:
    await alone.write_file("/root/it", b"here")
    await alone.checkpoint(lasting=True)

    async def refuse(*_args: object, **_options: object) -> None:
        raise HostError("no")

    with monkeypatch.context() as patched:
        patched.setattr(rollback, "bring_back", refuse)
        with pytest.raises(HostError, match="no"):
            await alone.rollback()
        with pytest.raises(RolledBack):
            await alone.exec(["true"])
        with pytest.raises(VMNotFound):
            await VM.connect("back")
    assert vmfork("ps", "-a", "--json").check().out.count(rollback.FAILED) == 1
    async with await VM.revive("back") as again:
        assert await again.read_file("/root/it") == b"here"
        assert again.id == alone.id
    # Whoever had it before has it again by another rollback.
    await alone.rollback()
    assert await alone.read_file("/root/it") == b"here"


async def test_one_whose_keeper_was_killed_goes_back_too(alone) -> None:
    """Nobody would end it: its broker has ended with the keeper."""
    await alone.write_file("/root/it", b"here")
    await alone.checkpoint(lasting=True)
    os.kill(keeper_of(alone), signal.SIGKILL)
    await alone.rollback()
    assert await alone.read_file("/root/it") == b"here"


async def test_one_that_has_ended_just_now_is_brought_back_at_once(alone) -> None:
    """Its keeper ends a moment later, and has its folder until then."""
    await alone.write_file("/root/it", b"here")
    await alone.checkpoint(lasting=True)
    for _ in range(3):
        record = (await VM.list())[0]
        os.kill(record.pid, signal.SIGKILL)
        await wait_ended(record.process)
        async with await VM.revive(alone.id) as again:
            assert await again.read_file("/root/it") == b"here"


@pytest.mark.parametrize("how", ["killed", "o"])
async def test_the_commands_bring_it_back_after_its_end(alone, how) -> None:
    await alone.write_file("/root/it", b"here")
    assert vmfork("checkpoint", "back").check().out == "1\n"
    await end_machine(alone, how)
    sweep_vms(find_places().vms)
    assert vmfork("rollback", "back").check().out == f"{alone.id}\n"
    assert vmfork("exec", "back", "cat", "/root/it").check().out == "here"
    listed = json.loads(vmfork("ps", "-a", "--filter", "job=7", "--json").check().out)
    (told,) = [each for each in listed if each["id"] == alone.id]  # it is not among those that have ended
    assert (told["id"], told["name"], told["state"]) == (alone.id, "back", "shared")


async def test_the_commands_keep_list_and_remove_checkpoints(alone) -> None:
    await alone.write_file("/root/who", b"first")
    assert vmfork("checkpoint", "back").check().out == "1\n"
    await alone.write_file("/root/who", b"second")
    made = json.loads(vmfork("checkpoint", "back", "good", "--json").check().out)
    assert (made["id"], made["name"]) == (alone.id, "good")
    assert made["memory_bytes"] > 1 << 20
    told = json.loads(vmfork("checkpoint", "back", "--list", "--json").check().out)
    assert [each["name"] for each in told["checkpoints"]] == ["1", "good"]
    assert [each.name for each in await alone.checkpoints()] == ["1", "good"]
    for name, content in (("1", "first"), ("good", "second"), ("", "second")):
        told = json.loads(vmfork("rollback", "back", *filter(None, [name]), "--json").check().out)
        assert told == {"id": alone.id, "name": "back", "had_ended": False}
        assert vmfork("exec", "back", "cat", "/root/who").check().out == content
    for wrong in (
        ("checkpoint", "back", "good"),
        ("checkpoint", "back", "no/name"),
        ("checkpoint", "back", "--remove"),
        ("checkpoint", "back", "1", "--list"),
        ("rollback", "back", "other"),
    ):
        refused = vmfork(*wrong)
        assert (refused.status, refused.raw) == (2, b"")
        assert refused.err.startswith("error: ")
    vmfork("checkpoint", "back", "1", "--remove").check()
    assert [
        each["name"] for each in json.loads(vmfork("checkpoint", "back", "--list", "--json").check().out)["checkpoints"]
    ] == ["good"]


async def test_one_that_its_owner_ends_keeps_none(fork) -> None:
    with pytest.raises(ConfigError, match="ends with its owner"):
        await fork.checkpoint(lasting=True)
    with pytest.raises(ConfigError, match="lasts"):
        await fork.checkpoint(name="one")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        await fork.rollback()
    refused = vmfork("checkpoint", fork.id)
    assert (refused.status, refused.raw) == (1, b"")
    with pytest.raises(VMNotFound):
        await VM.revive("nobody")
