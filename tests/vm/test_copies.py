"""Files and folders between host and guest, in booted and forked machines."""

from __future__ import annotations

import asyncio
import filecmp
import os
import signal
from typing import TYPE_CHECKING

import pytest

import vmfork
from vmfork.errors import ConfigError, GuestError, GuestFileError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A script, a folder with more, a second name, a link, and a hole."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "run.sh").write_text("#!/bin/sh\necho ran in $(dirname $0)\n")
    (root / "run.sh").chmod(0o750)
    (root / "sub" / "data").write_bytes(os.urandom(300_000))
    os.link(root / "sub" / "data", root / "sub" / "again")
    (root / "link").symlink_to("sub/data")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(50_000_000)
    os.utime(root / "run.sh", ns=(1, 1_234_567_890_987_654_321))
    return root


def check_same(one: Path, other: Path) -> None:
    compared = filecmp.dircmp(one, other)
    assert (compared.left_only, compared.right_only, compared.diff_files) == ([], [], [])
    assert filecmp.cmp(one / "sub" / "data", other / "sub" / "data", shallow=False)
    assert os.path.samefile(other / "sub" / "data", other / "sub" / "again")
    assert os.readlink(other / "link") == "sub/data"
    assert (other / "run.sh").stat().st_mtime_ns == 1_234_567_890_987_654_321
    assert (other / "run.sh").stat().st_mode & 0o777 == 0o750
    assert (other / "sparse").stat().st_blocks * 512 < 1_000_000


@pytest.mark.qemu
async def test_a_folder_goes_into_a_guest_runs_there_and_comes_back(any_vm, tree: Path, tmp_path: Path) -> None:
    put = await any_vm.put(tree, "/root/tree")
    assert (put.files, put.folders, put.links, put.skipped) == (3, 2, 2, ())
    ran = await any_vm.exec(["/root/tree/run.sh"], check=True)
    assert ran.stdout == "ran in /root/tree\n"
    used = await any_vm.shell("stat -c '%n %a %U' /root/tree/run.sh; du -k /root/tree/sparse | cut -f1", check=True)
    assert used.stdout.split("\n")[0] == "/root/tree/run.sh 750 root"
    assert int(used.stdout.split("\n")[1]) < 1000
    got = await any_vm.get("/root/tree", tmp_path / "back")
    assert (got.files, got.folders, got.links, got.size_bytes) == (3, 2, 2, put.size_bytes)
    check_same(tree, tmp_path / "back")


async def test_names_are_listed_moved_and_given_away(any_vm, tree: Path) -> None:
    await any_vm.put(tree, "/srv/tree", parents=True)
    every = [entry.name for entry in await any_vm.list_dir("/srv/tree", recursive=True)]
    assert every == ["link", "run.sh", "sparse", "sub", "sub/again", "sub/data"]
    for glob, fits in (("*.sh", ["run.sh"]), ("sub/*a", ["sub/data"]), ("**/*a*", ["sparse", "sub/again", "sub/data"])):
        found = await any_vm.list_dir("/srv/tree", recursive=True, glob=glob)
        assert [entry.name for entry in found] == fits
    assert [entry.name for entry in await any_vm.list_dir("/srv/tree", glob="s*")] == ["sparse", "sub"]
    with pytest.raises(ConfigError, match="recursive=True"):
        await any_vm.list_dir("/srv/tree", glob="sub/*")
    await any_vm.move("/srv/tree/sub", "/srv/moved")
    await any_vm.chmod("/srv/moved/data", 0o640)
    await any_vm.chown("/srv/moved/data", user="nobody", group="daemon")
    told = await any_vm.shell("stat -c '%a %U %G' /srv/moved/data", check=True)
    assert told.stdout == "640 nobody daemon\n"
    there = [await any_vm.exists(f"/srv/{path}") for path in ("moved", "tree/sub", "moved/data/x", "tree/link")]
    assert there == [True, False, False, True]
    # What is mounted is named, and not gone into.
    top = await any_vm.list_dir("/", recursive=True, glob="proc/**")
    assert [entry.name for entry in top] == ["proc"]


def test_the_blocking_form_does_the_same_and_tells_where_it_is(template_name: str, tree: Path, tmp_path: Path) -> None:
    steps: list[vmfork.Progress] = []
    with vmfork.Template.open(template_name).fork() as vm:
        vm.put(tree, "/root/tree", progress=steps.append)
        vm.get("/root/tree", tmp_path / "back", progress=steps.append)
        vm.get("/root/tree/run.sh", tmp_path)
    check_same(tree, tmp_path / "back")
    assert (tmp_path / "run.sh").read_text() == (tree / "run.sh").read_text()
    assert {step.task for step in steps} == {"put", "get"}
    assert any(step.fraction for step in steps)


async def test_what_does_not_fit_is_refused_before_it_is_sent_and_leaves_nothing(fork, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as big:
        os.posix_fallocate(big.fileno(), 0, 400 << 20)
    with pytest.raises(GuestFileError, match="do not fit") as caught:
        await fork.put(tmp_path / "big", "/root/big")
    assert caught.value.reason == "no-space"
    assert not await fork.exists("/root/big")
    (tmp_path / "many").mkdir()
    os.link(tmp_path / "big", tmp_path / "many" / "big")
    with pytest.raises(GuestFileError, match="do not fit") as caught:
        await fork.put(tmp_path / "many", "/root/many")
    assert caught.value.arrived is not None
    assert caught.value.arrived.files == 0
    assert await fork.list_dir("/root/many") == ()


async def test_a_machine_that_dies_ends_its_copy_and_leaves_no_half_file(fork, tmp_path: Path) -> None:
    await fork.shell("mkdir /root/tree; echo whole > /root/tree/a; head -c 60000000 /dev/urandom > /root/tree/b")
    begun = asyncio.Event()

    def progress(_event) -> None:
        begun.set()

    copying = asyncio.ensure_future(fork.get("/root/tree", tmp_path / "back", progress=progress))
    await begun.wait()
    os.kill(fork.pid, signal.SIGKILL)
    with pytest.raises(GuestError) as caught:
        await copying
    assert caught.value.arrived is not None
    assert set(os.listdir(tmp_path / "back")) <= {"a"}


async def test_a_folder_of_the_guest_cannot_lead_out_of_its_copy(fork, tmp_path: Path) -> None:
    await fork.shell("mkdir -p /root/evil/d; ln -s /etc /root/evil/d/out; mknod /root/evil/null c 1 3", check=True)
    with pytest.raises(vmfork.HostError, match="leads out"):
        await fork.get("/root/evil", tmp_path / "copy")
    got = await fork.get("/root/evil", tmp_path / "copy", outside_links=True)
    assert got.skipped == ("null",)
    assert os.readlink(tmp_path / "copy" / "d" / "out") == "/etc"
    await fork.shell(
        "rm /root/evil/d/out; mkdir /root/evil/d/out; echo x > /root/evil/d/out/vmfork-escaped", check=True
    )
    with pytest.raises(vmfork.HostError, match="no folder"):
        await fork.get("/root/evil", tmp_path / "copy")
    assert not os.path.exists("/etc/vmfork-escaped")
