"""What differs between two machines: files, processes, memory."""

from __future__ import annotations

import json
import os
import signal

import pytest

import vmfork as blocking
from tests.vm.cli_runner import vmfork
from vmfork.errors import Closed, ConfigError, GuestError, MachineEnded

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


def of_root(found) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What differs below /root."""
    return {each.path: (each.where, each.aspects) for each in found.files if each.path.startswith("/root/")}


async def test_what_siblings_did_since_they_were_forked_is_all_that_differs(fork) -> None:
    for name in ("same", "content", "mode", "size", "gone", "owner", "back"):
        await fork.write_file(f"/root/{name}", b"x" * 5000)
    await fork.shell("ln -s same /root/link; touch -d @1700000000 /root/back", check=True)
    ours, theirs = await fork.fork(2)
    async with ours, theirs:
        nothing = await ours.diff(theirs)
        assert (of_root(nothing), nothing.processes) == ({}, ())
        await ours.write_file("/root/content", b"x" * 4999 + b"y")
        # Its size and its time are what they were.
        await ours.shell(
            "printf y | dd of=/root/back conv=notrunc status=none && touch -d @1700000000 /root/back", check=True
        )
        await ours.write_file("/root/size", b"x" * 5001)
        await theirs.shell(
            "chmod 600 /root/mode; rm /root/gone; chown 7 /root/owner; rm /root/link; mkdir /root/link; "
            "cp /root/same /root/copy; mv /root/copy /root/same; echo new > '/root/new\nline'",
            check=True,
        )
        await theirs.write_file("/root/random", os.urandom(8 << 20))
        process = await theirs.start(["sleep", "1000"])
        found = await ours.diff(theirs)
        await process.aclose()
        assert of_root(found) == {
            "/root/back": ("both", ("content",)),
            "/root/content": ("both", ("content",)),
            "/root/gone": ("ours", ()),
            "/root/link": ("both", ("type",)),
            "/root/mode": ("both", ("mode",)),
            "/root/new\nline": ("theirs", ()),
            "/root/owner": ("both", ("owner",)),
            "/root/random": ("theirs", ()),
            "/root/size": ("both", ("content",)),
        }
        assert [(each.argv, each.is_ours) for each in found.processes] == [(("sleep", "1000"), False)]
        assert found.memory.pages > nothing.memory.pages + 2048
        assert found.memory.theirs >= 2048
        assert 8 <= found.memory.mib < 100
        few = await ours.diff(theirs, most=2)
        assert (len(few.files), few.more_files) == (2, len(found.files) - 2)


async def test_a_machine_is_compared_with_its_template(fork, template) -> None:
    await fork.write_file("/root/mine", b"mine")
    found = await fork.diff(template)
    assert of_root(found) == {"/root/mine": ("ours", ())}
    with pytest.raises(ConfigError, match="other"):
        await fork.diff(5)


async def test_a_machine_that_stands_still_was_closed_or_has_ended_is_told_as_that(fork, template) -> None:
    async with await template.fork() as other:
        await other.pause()
        with pytest.raises(GuestError, match="paused"):
            await fork.diff(other)
        await other.resume()
        os.kill(other.pid, signal.SIGKILL)
        with pytest.raises(MachineEnded):
            await fork.diff(other)
    with pytest.raises(Closed):
        await fork.diff(other)


def test_it_blocks_for_those_who_do_not_await(template_name) -> None:
    template = blocking.Template.open(template_name)
    with template.fork() as one, template.fork() as other:
        one.write_file("/root/one", b"1")
        assert of_root(one.diff(other)) == {"/root/one": ("ours", ())}
        assert of_root(one.diff(template)) == {"/root/one": ("ours", ())}


async def test_the_command_shows_it_and_tells_programs(template, template_name) -> None:
    async with await template.start(name="differs") as vm:
        try:
            await vm.write_file("/root/\x1b[2Jmine", b"mine")
            await vm.write_file("/root/a\n> b", b"mine")
            said = vmfork("diff", "differs", template_name).check().out
            assert "< /root/mine\n" in said
            assert "< /root/a\\n> b\n" in said
            assert "\x1b" not in said
            assert "~ memory: " in said
            told = json.loads(vmfork("diff", "--json", template_name, vm.id).check().out)
            assert {"path": "/root/\x1b[2Jmine", "where": "theirs", "aspects": []} in told["files"]
            assert told["memory"]["pages"] > 0
            missing = vmfork("diff", "differs", "nonesuch")
            assert (missing.status, missing.raw) == (1, b"")
            assert "nonesuch" in missing.err
        finally:
            await vm.stop(grace_s=0)
