"""`vmfork cp` by docker's rules, in a machine that `vmfork start` made."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.vm.cli_runner import Outcome, Running, vmfork
from vmfork.aio import VM, Template, VMConfig
from vmfork.errors import ConfigError, GuestError, GuestFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 240
SIZE = 200 * 1024 * 1024


@pytest.fixture(scope="module")
def machine(instance) -> Iterator[str]:
    """A machine that all tests here share, each in a folder of its own. Its files lie in its memory."""
    template = asyncio.run(Template.build("cp", VMConfig(memory_mib=768)))
    try:
        vmfork("start", "-t", "cp", "--name", "cp").check()
        yield "cp"
        vmfork("stop", "--grace", "0", "cp").check()
    finally:
        asyncio.run(template.remove())


@pytest.fixture
def there(machine, request) -> str:
    """A folder of the guest for one test: its path."""
    path = f"/srv/{request.node.name.split('[')[0][:40]}"
    in_guest(f"mkdir -p {path}")
    return path


def in_guest(script: str, machine: str = "cp") -> str:
    return vmfork("exec", machine, "sh", "-c", script).check().out


def cp(*argv: str, **options) -> Outcome:
    return vmfork("cp", *argv, **options)


def refused(done: Outcome, status: int, says: str) -> None:
    assert done.status == status, done
    assert says in done.err, done
    assert "hint: " in done.err or status == 1, done


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o751)
    (folder / "sub" / "data").write_text("data")
    (folder / "link").symlink_to("sub/data")
    os.utime(folder / "run", ns=(1, 1_234_567_890_123_456_789))
    return folder


def test_a_file_goes_where_docker_puts_it(there: str, project: Path) -> None:
    run = str(project / "run")
    cp(run, f"cp:{there}/new").check()
    cp(run, f"cp:{there}").check()
    cp(run, f"cp:{there}/new").check()  # onto a file
    cp(run, f"cp:{there[1:]}/relative").check()  # from the root on
    assert in_guest(f"cd {there}; stat -c '%n %a %U %y' *").splitlines() == [
        f"{name} 751 root 2009-02-13 23:31:30.123456789 +0000" for name in ("new", "relative", "run")
    ]
    refused(cp(run, f"cp:{there}/none/"), 1, "copying to")
    refused(cp(run, f"cp:{there}/none/x"), 1, "No such file")
    refused(cp(f"{run}/", f"cp:{there}/x"), 2, "Not a directory")
    assert in_guest(f"ls {there}").split() == ["new", "relative", "run"]


def test_a_folder_goes_into_one_that_is_there_and_its_content_with_a_dot(there: str, project: Path) -> None:
    for source, goal in ((project, "new"), (project, ""), (f"{project}/.", "merged"), (".", "dot")):
        cp(str(source), f"cp:{there}/{goal}", cwd=project).check()
    cp(f"{project}/.", f"cp:{there}/merged/").check()
    cp(str(project), f"cp:{there}/merged/").check()
    assert in_guest(f"cd {there}; find . -name data | sort").split() == [
        "./dot/sub/data",
        "./merged/project/sub/data",
        "./merged/sub/data",
        "./new/sub/data",
        "./project/sub/data",
    ]
    in_guest(f"echo file > {there}/file")
    refused(cp(str(project), f"cp:{there}/file"), 2, "is a file, and a folder is copied")
    assert in_guest(f"cat {there}/file") == "file\n"


def test_out_of_a_machine_it_is_the_same(there: str, project: Path, tmp_path: Path) -> None:
    cp(str(project), f"cp:{there}").check()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("file")
    for source, goal in (("/", "new"), ("", "folder"), ("/.", "merged"), ("/.", "merged"), ("/run", "folder")):
        cp(f"cp:{there}/project{source}", goal, cwd=tmp_path).check()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("data"))
    assert found == ["folder/project/sub/data", "merged/sub/data", "new/sub/data", "project/sub/data"]
    copy = tmp_path / "folder" / "run"
    assert (copy.stat().st_mode & 0o777, copy.stat().st_mtime_ns) == (0o751, 1_234_567_890_123_456_789)
    refused(cp(f"cp:{there}/project", "file", cwd=tmp_path), 2, "is a file, and a folder is copied")
    refused(cp(f"cp:{there}/project/run", "none/", cwd=tmp_path), 1, "there is no folder")
    refused(cp(f"cp:{there}/none", ".", cwd=tmp_path), 1, "No such file")
    assert (tmp_path / "file").read_text() == "file"


def test_a_link_is_copied_itself_unless_it_is_to_be_followed(there: str, project: Path, tmp_path: Path) -> None:
    (project / "folder-link").symlink_to("sub")
    cp(str(project / "link"), f"cp:{there}/itself").check()
    cp(str(project / "link"), f"cp:{there}").check()
    cp("-L", str(project / "link"), f"cp:{there}/followed").check()
    cp(str(project / "folder-link"), f"cp:{there}").check()
    cp(f"{project}/folder-link/", f"cp:{there}/its-content").check()
    told = in_guest(f"cd {there}; for each in *; do echo $each $(readlink $each); done; ls its-content")
    told_of = ["folder-link sub", "followed", "its-content", "itself sub/data", "link sub/data"]
    assert told.splitlines() == [*told_of, "data"]
    in_guest(f"ln -s /etc/passwd {there}/evil")
    cp(f"cp:{there}/itself", str(tmp_path / "back")).check()
    assert os.readlink(tmp_path / "back") == "sub/data"
    refused(cp(f"cp:{there}/evil", str(tmp_path)), 1, "leads out")
    assert not os.path.lexists(tmp_path / "evil")
    cp("-L", f"cp:{there}/evil", str(tmp_path / "passwd")).check()
    assert (tmp_path / "passwd").read_text().startswith("root:")


@pytest.mark.qemu  # on other Pythons, too, each of which reads a broken tar in another way
def test_a_tar_goes_in_and_out_on_the_standard_streams(there: str, project: Path, tmp_path: Path) -> None:
    tar = subprocess.run(["tar", "-C", tmp_path, "-c", "project"], check=True, capture_output=True).stdout
    cp("-", f"cp:{there}", input=tar).check()
    for source, name in ((f"{there}/project", "project"), (f"{there}/project/.", ".")):
        with tarfile.open(fileobj=io.BytesIO(cp(f"cp:{source}", "-").check().raw)) as back:
            data = back.extractfile(f"{name}/sub/data")
            assert data is not None
            assert data.read() == b"data"
            assert back.getmember(f"{name}/run").mode == 0o751
            assert back.getmember(f"{name}/link").linkname == "sub/data"
    refused(cp("-", f"cp:{there}/none", input=tar), 1, "there is no such folder")
    refused(cp("-", f"cp:{there}", input=tar[:700]), 2, "no whole tar")
    refused(cp("-", f"cp:{there}", input=b""), 2, "no whole tar")
    refused(cp(f"cp:{there}", "-", "--json"), 2, "the tar goes where --json would")


@pytest.mark.parametrize(
    ("source", "goal", "status", "says"),
    [
        ("cp:/etc/hostname", "cp:/tmp/x", 2, "from one machine to another"),
        ("a", "b", 2, "neither SRC nor DST"),
        ("", "cp:/x", 2, "empty"),
        ("cp:", "x", 2, "is not ID:PATH"),
        (":x", "x", 2, "is not ID:PATH"),
        ("./a:b", "cp:/x", 2, "No such file"),
        ("/none", "cp:/x", 2, "No such file"),
        ("/dev/null", "cp:/x", 2, "neither a file nor a folder"),
        ("no-such-machine:/x", ".", 1, "no living VM"),
        ("cp:/dev/null", ".", 1, "copying from /dev/null"),
        ("cp:/" + "x/" * 2500, ".", 1, "x/x/x"),
        ("cp:/etc/hostname", "y" * 300, 1, "too long"),
    ],
)
def test_what_cannot_be_copied_is_refused_by_name(machine, tmp_path: Path, source, goal, status, says) -> None:
    done = cp(source, goal, cwd=tmp_path)
    refused(done, status, says)
    assert os.listdir(tmp_path) == []
    told = json.loads(cp("--json", source, goal, cwd=tmp_path).raw)
    assert told["error"]["code"]


def test_json_tells_what_was_copied_and_others_are_told_what_was_left_out(there: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    odd = tmp_path / os.fsdecode(b"d/\xff\n")
    odd.write_text("odd")
    os.mkfifo(tmp_path / "d" / "pipe")
    told = json.loads(cp("--json", str(tmp_path / "d"), f"cp:{there}").check().raw)
    assert (told["files"], told["folders"], told["size_bytes"], told["skipped"]) == (1, 1, 3, ["pipe"])
    done = cp(str(tmp_path / "d"), f"cp:{there}").check()
    assert (done.raw, done.err) == (b"", "left out, as devices, pipes, sockets and mounts are: pipe\n")
    cp(f"cp:{there}/{os.fsdecode(b'd/') + odd.name}", str(tmp_path / "back")).check()
    assert (tmp_path / "back").read_text() == "odd"


def test_200_mb_go_in_and_come_back_with_flat_memory_on_both_sides(there: str, tmp_path: Path) -> None:
    check_round_trip("cp", there, tmp_path, SIZE)


def check_round_trip(machine: str, there: str, tmp_path: Path, size: int) -> None:
    """A file of that size goes into the machine and comes back whole; neither agent nor command holds much of it."""
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with (tmp_path / "big").open("wb") as big:
        for _ in range(size >> 20):
            big.write(piece)
            digest.update(piece)

    def copy(*argv: str) -> int:
        """The most memory that the command had, in KiB."""
        measured = subprocess.run([sys.executable, "-c", _PEAK, *argv], check=True, capture_output=True)
        return int(measured.stdout)

    assert copy(str(tmp_path / "big"), f"{machine}:{there}") < 120 * 1024
    told = in_guest(f"sha256sum {there}/big; grep VmHWM /proc/1/status", machine).split()
    assert told[0] == digest.hexdigest()
    assert int(told[3]) < 64 * 1024
    (tmp_path / "big").unlink()
    assert copy(f"{machine}:{there}/big", str(tmp_path)) < 120 * 1024
    with (tmp_path / "big").open("rb") as back:
        assert hashlib.file_digest(back, "sha256").hexdigest() == digest.hexdigest()
    (tmp_path / "big").unlink()
    in_guest(f"rm {there}/big", machine)


def test_one_who_breaks_off_is_told_what_arrived_and_leaves_no_half_file(there: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "a").write_text("whole")
    with (source / "b").open("wb") as big:
        os.posix_fallocate(big.fileno(), 0, 100 << 20)
    in_guest(f"mkdir -p {there}/tree/b")
    refused(cp(str(source), f"cp:{there}"), 1, "1 file, 1 folder with 5 bytes arrived, the last of them 'a'")
    in_guest(f"rm -r {there}/tree")
    with Running("cp", str(source), f"cp:{there}") as copying:
        in_guest(f"until [ -e {there}/tree/a ]; do sleep 0.05; done")
        copying.interrupt(signal.SIGINT)
        assert copying.end().status in (130, 0)
    in_guest(f"while ls -A {there}/tree | grep -q vmfork; do sleep 0.05; done")
    assert set(in_guest(f"ls -A {there}/tree").split()) <= {"a", "b"}


async def test_paths_of_all_kinds_are_kept_or_refused_by_name(machine, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    async with VM.connect("cp") as vm:
        await vm.put(tmp_path / "x", "/srv/../tmp/./dotted")
        assert await vm.read_file("/tmp/dotted") == b"x"
        odd = os.fsdecode(b"/tmp/\xff\xfe\n")
        await vm.put(tmp_path / "x", odd)
        await vm.get(odd, tmp_path / "back")
        assert [entry.name for entry in await vm.list_dir("/tmp", glob="*\n")] == [odd[5:]]
        await vm.move(odd, "/tmp/even")
        await vm.chmod("/tmp/even", 0o600)
        await vm.chown("/tmp/even", user="65534")
        assert (await vm.stat("/tmp/even")).uid == 65534
        assert (await vm.exists("/tmp/even"), await vm.exists(odd), await vm.is_dir("/tmp")) == (True, False, True)
        for bad in ("/a\0b", "relative", "", "/\ud800"):
            for call in (
                lambda path: vm.put(tmp_path / "x", path),
                lambda path: vm.get(path, tmp_path / "y"),
                vm.list_dir,
                vm.exists,
                lambda path: vm.move("/tmp/even", path),
                lambda path: vm.chmod(path, 0o600),
            ):
                with pytest.raises(ConfigError):
                    await call(bad)
        for long in ("/" + "x" * 5000, "/" + "x/" * 2500):
            for call in (
                lambda path: vm.put(tmp_path / "x", path),
                lambda path: vm.get(path, tmp_path / "y"),
                vm.list_dir,
                lambda path: vm.move("/tmp/even", path),
                lambda path: vm.chmod(path, 0o600),
            ):
                with pytest.raises(GuestFileError):
                    await call(long)
        assert not (tmp_path / "y").exists()


async def test_an_agent_that_the_guests_own_code_breaks_ends_a_copy_by_name(template, tmp_path: Path) -> None:
    """It is init, which no signal ends; but root may write into its memory."""
    with (tmp_path / "big").open("wb") as big:
        os.posix_fallocate(big.fileno(), 0, 60 << 20)
    async with (
        await template.fork() as vm,
        vm.start(["python3", "-c", _BREAK], stdin=True) as killer,
    ):
        assert (await anext(killer.output()))[1] == b"ready\n"  # a Python that starts may take longer than the copy
        begun = asyncio.Event()
        copying = asyncio.ensure_future(vm.put(tmp_path / "big", "/root/big", progress=lambda _event: begun.set()))
        await asyncio.wait([copying, asyncio.ensure_future(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert begun.is_set()
        await killer.write_stdin(b"go\n")
        with pytest.raises(GuestError) as caught:
            await copying
        assert caught.value.arrived is not None
        assert caught.value.arrived.files == 0
        await vm.stop(grace_s=0)


_BREAK = """
print("ready", flush=True)
input()
maps = open("/proc/1/maps").read().splitlines()
start, end = (int(part, 16) for part in next(line for line in maps if " r-xp " in line).split()[0].split("-"))
with open("/proc/1/mem", "r+b", buffering=0) as memory:
    memory.seek(start)
    memory.write(bytes(end - start))
"""
_PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "vmfork", "cp", *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
