"""Changes of files in a machine: for its owner in both forms, for its clients, and on the command line."""

from __future__ import annotations

import json
import select
import signal

import pytest

import vmfork
from tests.vm.cli_runner import Running
from tests.vm.cli_runner import vmfork as command
from vmfork.aio import VM
from vmfork.errors import GuestFileError

pytestmark = pytest.mark.vm

LIMIT_S = 60


def test_a_program_that_writes_is_seen_in_the_blocking_form(template_name: str) -> None:
    with vmfork.Template.open(template_name).fork() as vm, vm.watch("/root", recursive=True) as watch:
        vm.shell("mkdir /root/d; echo x > /root/d/f; mv /root/d /srv/d; rm /root/marker", check=True)
        kinds = {}
        for event in watch.events():
            kinds.setdefault(event.path, []).append(event.kind)
            if event.path == "/root/marker" and event.kind == "removed":
                break
        assert kinds["/root/d"] == ["created", "moved-away"]
        assert "created" in kinds.get("/root/d/f", ["created"])  # it may have moved away before it was read
        # What was there when it was frozen is there still: the kernel's own part of a watch is the fork's.
        vm.write_file("/root/more", b"x")
        assert watch.next(timeout_s=LIMIT_S) is not None


async def test_a_watch_of_one_client_is_nothing_to_another(template) -> None:
    async with template.start(name="watched") as vm:
        try:
            async with VM.connect("watched") as other, other.watch("/srv") as watch:
                await vm.write_file("/srv/x", b"x")
                event = await watch.next(timeout_s=LIMIT_S)
                assert event is not None
                assert event.path.startswith("/srv/")
                with pytest.raises(GuestFileError):
                    await vm.watch("/none")
            with Running("watch", "watched", "/srv", "--json") as watching:
                while True:  # until it has begun
                    await vm.write_file("/srv/y", b"y")
                    if is_told(watching):
                        break
                watching.interrupt(signal.SIGINT)
                done = watching.end()
                assert done.status == 130
                assert json.loads(done.out.splitlines()[0])["path"].startswith("/srv/")
            done = command("watch", "watched", "/none")
            assert (done.status, "watch /none: No such file" in done.err) == (1, True)
            # Nothing of a client's watch is left: as many again can be had.
            for _ in range(3):
                async with VM.connect("watched") as client, client.watch("/srv"):
                    pass
        finally:
            await vm.stop(grace_s=0)


def is_told(watching: Running) -> bool:
    return bool(select.select([watching.process.stdout], [], [], 0.5)[0])
