"""Stage, commit, open, replace, remove: at every moment a template is the old one, the new one, or not there."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.children import exit_code_of, fork_child
from tests.unit.store.probe import MEMORY_BYTES, STATE, mounts_below
from vmfork.errors import (
    Closed,
    ConfigError,
    HostError,
    StoreBusy,
    TemplateCorrupt,
    TemplateElsewhere,
    TemplateExists,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host import facts, namespace
from vmfork.host.lock import FileLock, is_locked
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.store import TemplateStore
from vmfork.store.staging import STATE_HEADROOM
from vmfork.units import MIB, format_mib

BAD_NAMES = [
    "",
    "/",
    "/etc",
    ".",
    "..",
    "../one",
    "a/b",
    ".hidden",
    "-x",
    "x" * 200,
    "a\n",
    "\n",
    "a b",
    "a\0b",
    "ä",
    "current/",
]
as_root = pytest.mark.needs("root")


def generation_in(opened) -> str:
    """What the RAM itself says: it begins with the name of its generation."""
    return os.pread(opened.memory_fd, 16, 0).decode()


def generation_folders(store, name="one") -> list[str]:
    return [path.name for path in (store.folder / name).iterdir() if path.is_dir() and not path.is_symlink()]


# Stage, commit, open


async def test_what_was_committed_is_what_is_opened(store, build):
    generation = await build(store)
    with store.open("one") as opened:
        assert opened.manifest.generation == generation_in(opened) == generation
        assert os.read(opened.state_fd, 10_000) == STATE
        assert os.fstat(opened.memory_fd).st_size == MEMORY_BYTES
        assert opened.manifest == store.read_manifest("one") == store.verify("one")
    assert os.readlink(store.folder / "one" / "current") == generation
    assert store.list_names() == ["one"]


async def test_only_we_may_look_into_it(store, build):
    generation = await build(store)
    folder = store.folder / "one"
    modes = {path: path.stat().st_mode & 0o777 for path in (store.folder, folder, folder / generation)}
    assert set(modes.values()) == {0o700}
    assert {(folder / generation / file).stat().st_mode & 0o077 for file in ("memory", "manifest.json")} == {0}


async def test_an_opened_template_cannot_be_written_to(store, build):
    await build(store)
    with store.open("one") as opened:
        for fd in (opened.memory_fd, opened.state_fd):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(fd, b"x", 0)
            assert not os.get_inheritable(fd)


async def test_names_are_listed_sorted_without_what_is_only_staged(store, build):
    for name in ("b", "a", "c.1"):
        await build(store, name)
    async with await store.stage("staged", memory_bytes=MEMORY_BYTES):
        assert store.list_names() == ["a", "b", "c.1"]


async def test_templates_are_found_by_their_image_as_far_as_they_can_be_read(store, build):
    await build(store, "two", image="mine")
    await build(store, "one", image="mine")
    await build(store, "three")
    await build(store, "five", image="mine", came_from="registry.example/team/five:1")  # of an image there
    damaged = await build(store, "four", image="mine")
    (store.folder / "four" / damaged / "manifest.json").write_bytes(b"{")
    assert store.list_made_of("mine") == ["one", "two"]
    assert store.list_made_of("none") == []


async def test_of_two_that_are_used_one_right_after_the_other_the_second_is_the_later(store, build):
    """The kernel's own stamps are equal for some milliseconds."""
    for name in ("one", "two"):
        await build(store, name)
    store.note_use("two")
    store.note_use("one")
    assert store.find_last_use("two") < store.find_last_use("one")


def test_a_store_that_was_never_used_is_empty(store):
    assert (store.list_names(), store.sweep()) == ([], [])
    assert not store.folder.exists()


async def test_an_existing_template_is_not_touched_without_replace(store, build):
    generation = await build(store)
    with pytest.raises(TemplateExists):
        await store.stage("one", memory_bytes=MEMORY_BYTES)
    assert store.read_manifest("one").generation == generation
    assert not is_locked(store.folder / "one" / "building")


async def test_the_old_generation_is_in_force_until_the_new_one_is_committed(store, build, fill):
    old = await build(store)
    async with await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True) as staging:
        manifest = fill(staging)
        with store.open("one") as opened:
            assert generation_in(opened) == old
        assert sorted(generation_folders(store)) == sorted([old, staging.generation])
        await staging.commit(manifest)
    with store.open("one") as opened:
        assert generation_in(opened) == staging.generation != old
    assert generation_folders(store) == [staging.generation]


async def test_who_opened_the_old_generation_keeps_it(store, build):
    old = await build(store)
    with store.open("one") as opened:
        new = await build(store, replace=True)
        assert generation_in(opened) == old
        await store.remove("one")
        assert generation_in(opened) == old
        assert new != old


async def test_a_generation_asked_for_by_name_is_that_one_or_none(store, build):
    old = await build(store)
    with store.open("one", generation=old) as opened:
        assert generation_in(opened) == old
    await build(store, replace=True)
    with pytest.raises(TemplateNotFound):
        store.open("one", generation=old)


@pytest.mark.parametrize("replace", [False, True])
async def test_a_failed_build_leaves_what_was_there(store, build, fill, replace):
    old = await build(store) if replace else None
    with pytest.raises(ZeroDivisionError):
        async with await store.stage("one", memory_bytes=MEMORY_BYTES, replace=replace) as staging:
            fill(staging)
            raise ZeroDivisionError
    assert store.list_names() == (["one"] if replace else [])
    if replace:
        assert generation_folders(store) == [old]
        assert store.verify("one").generation == old
    else:
        assert list(store.folder.iterdir()) == []


async def test_a_commit_cancelled_while_it_waits_leaves_the_old_generation(store, build, fill):
    old = await build(store)
    staging = await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True)
    with FileLock.try_acquire(store.folder / "one" / "lock", shared=True):
        async with staging:
            commit = asyncio.create_task(staging.commit(fill(staging)))
            await asyncio.sleep(0)
            commit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await commit
    assert store.verify("one").generation == old
    assert generation_folders(store) == [old]


async def test_a_commit_waits_for_forks_that_are_just_being_made(store, build, fill):
    await build(store)
    reader = FileLock.try_acquire(store.folder / "one" / "lock", shared=True)
    async with await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True) as staging:
        commit = asyncio.create_task(staging.commit(fill(staging)))
        await asyncio.sleep(0)
        assert not commit.done()
        reader.close()
        await commit
    assert store.verify("one").generation == staging.generation


async def test_a_closed_staging_cannot_be_committed_and_closes_again(store, fill):
    staging = await store.stage("one", memory_bytes=MEMORY_BYTES)
    manifest = fill(staging)
    await staging.aclose()
    await staging.aclose()
    with pytest.raises(Closed):
        await staging.commit(manifest)
    assert store.list_names() == []


# Several at once


async def test_two_builds_of_one_name_in_one_process(store, build):
    async with await store.stage("one", memory_bytes=MEMORY_BYTES):
        assert is_locked(store.folder / "one" / "building")
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True)
        await build(store, "two")
    assert not is_locked(store.folder / "one" / "building")


async def test_a_build_in_another_process_is_named_and_waited_for(store, build):
    ready, done = os.pipe(), os.pipe()

    async def stage_until_told():
        async with await store.stage("one", memory_bytes=MEMORY_BYTES):
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    pid = fork_child(lambda: asyncio.run(stage_until_told()))
    os.read(ready[0], 1)
    with pytest.raises(StoreBusy) as caught:
        await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True)
    assert caught.value.holder == f"process {pid}"
    waiting = asyncio.create_task(build(store, wait_s=20))
    await asyncio.sleep(0)
    os.write(done[1], b"x")
    generation = await waiting
    assert exit_code_of(pid) == 0
    assert store.verify("one").generation == generation
    for fd in (*ready, *done):
        os.close(fd)


async def test_a_build_does_not_fail_for_a_sweep_of_another_command(store, build):
    (store.folder / "one").mkdir(parents=True)
    sweeping = FileLock.try_acquire(store.folder / "one" / "building")
    timer = threading.Timer(0.1, sweeping.close)
    timer.start()
    await build(store)
    timer.join()


async def test_a_build_goes_on_when_the_folder_goes_away_while_it_waits(store, build):
    folder = store.folder / "one"
    folder.mkdir(parents=True)
    removing = FileLock.try_acquire(folder / "building")
    waiting = asyncio.create_task(build(store, wait_s=20))
    await asyncio.sleep(0)
    shutil.rmtree(folder)
    removing.close()
    generation = await waiting
    assert store.verify("one").generation == generation


async def test_opening_waits_for_a_link_that_is_being_swapped(store, build):
    generation = await build(store)
    swapping = FileLock.try_acquire(store.folder / "one" / "lock")
    timer = threading.Timer(0.1, swapping.close)
    timer.start()
    with store.open("one") as opened:
        assert generation_in(opened) == generation
    timer.join()


async def test_opening_gives_up_on_one_who_holds_the_lock_for_good(store, build):
    await build(store)
    with FileLock.try_acquire(store.folder / "one" / "lock"), pytest.raises(StoreBusy):
        store.open("one")


async def test_readers_in_another_process_see_only_whole_templates(store, build):
    await build(store)
    ready, stop = os.pipe(), os.pipe()
    os.set_blocking(stop[0], False)

    def read_on():
        seen = set()
        while True:
            with store.open("one") as opened:
                assert generation_in(opened) == opened.manifest.generation
                seen.add(opened.manifest.generation)
            if len(seen) == 1:
                os.write(ready[1], b"x")
            try:
                os.read(stop[0], 1)
            except BlockingIOError:
                continue
            assert len(seen) > 1
            return

    pid = fork_child(read_on)
    os.read(ready[0], 1)
    for _ in range(15):
        await build(store, replace=True)
    os.write(stop[1], b"x")
    assert exit_code_of(pid) == 0
    for fd in (*ready, *stop):
        os.close(fd)


# Remove


async def test_a_removed_template_is_gone_with_its_mount(store, build, tmp_path):
    await build(store)
    await store.remove("one")
    assert list(store.folder.iterdir()) == []
    assert mounts_below(tmp_path) == []
    for call in (store.open, store.read_manifest, store.verify):
        with pytest.raises(TemplateNotFound):
            call("one")
    with pytest.raises(TemplateNotFound):
        await store.remove("one")


async def test_a_template_is_removed_under_whoever_works_in_its_folder(store, build, tmp_path, monkeypatch):
    monkeypatch.chdir(store.folder / "one" / await build(store))
    await store.remove("one")
    monkeypatch.chdir(tmp_path)
    assert (store.list_names(), mounts_below(tmp_path)) == ([], [])


async def test_a_fork_in_another_process_keeps_a_removed_template(store, build, tmp_path):
    generation = await build(store)
    ready, removed = os.pipe(), os.pipe()

    def hold():
        with store.open("one") as opened:
            os.write(ready[1], b"x")
            os.read(removed[0], 1)
            assert generation_in(opened) == generation

    pid = fork_child(hold)
    os.read(ready[0], 1)
    await store.remove("one")
    assert mounts_below(tmp_path) == []
    os.write(removed[1], b"x")
    assert exit_code_of(pid) == 0
    for fd in (*ready, *removed):
        os.close(fd)


def leave_mount_namespace() -> None:
    """This process has a mount namespace of its own, from which nothing propagates: unshare(2), mount(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    assert libc.unshare(new_namespace) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(b"none", b"/", None, recursive | private, None) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.needs("namespaces")
async def test_a_template_mounted_in_another_namespace_is_named_until_that_is_gone(store, build, tmp_path, caplog):
    """From outside its folder is empty; `ensure` took it for damage and built another in its place."""
    built, done = os.pipe(), os.pipe()

    def build_inside():
        leave_mount_namespace()
        generation = asyncio.run(build(store))
        assert store.verify("one").generation == generation
        assert "seen in this mount namespace alone" in caplog.text
        os.write(built[1], b"x")
        os.read(done[0], 1)

    pid = fork_child(build_inside)
    os.read(built[0], 1)
    for look in (store.open, store.read_manifest, store.verify):
        with pytest.raises(TemplateElsewhere, match=f"that of process {pid} "):
            look("one")
    assert store.list_names() == ["one"]
    assert store.list_made_of("default") == []
    os.write(done[1], b"x")
    assert exit_code_of(pid) == 0
    # In a container, somebody outside it may have that namespace still.
    seen = os.stat("/proc/self/ns/pid").st_ino == namespace._FIRST_PID_NAMESPACE
    error, said = (TemplateCorrupt, "went with the mount namespace") if seen else (TemplateElsewhere, "cannot be seen")
    with pytest.raises(error, match=said):
        store.open("one")
    await build(store, replace=True)
    store.verify("one")
    assert len(mounts_below(tmp_path)) == 1
    for fd in (*built, *done):
        os.close(fd)


@as_root
async def test_a_tmpfs_that_was_unmounted_or_went_with_a_reboot_is_told_as_that(store, build, monkeypatch):
    unmount(store.folder / "one" / await build(store))
    with pytest.raises(TemplateCorrupt, match="its tmpfs was unmounted"):
        store.open("one")
    monkeypatch.setattr(facts, "boot_id", lambda: "after the reboot")
    with pytest.raises(TemplateStale, match=r"host\.boot_id"):
        store.open("one")


async def test_what_is_being_replaced_cannot_be_removed(store, build):
    generation = await build(store)
    async with await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True):
        with pytest.raises(StoreBusy):
            await store.remove("one")
    assert store.verify("one").generation == generation


async def test_what_is_only_being_built_is_not_there_to_remove(store, build):
    async with await store.stage("one", memory_bytes=MEMORY_BYTES) as staging:
        with pytest.raises(TemplateNotFound):
            await store.remove("one")
        assert staging.memory_path.exists()


async def test_of_several_who_remove_one_template_one_does(store, build):
    await build(store)

    def remove():
        try:
            asyncio.run(store.remove("one"))
        except TemplateNotFound:
            os._exit(3)

    codes = sorted(exit_code_of(pid) for pid in [fork_child(remove) for _ in range(4)])
    assert codes == [0, 3, 3, 3]


@pytest.mark.parametrize("file", ["manifest.json", "memory", "state"])
async def test_a_damaged_template_can_be_replaced_and_removed(store, build, file):
    generation = await build(store)
    (store.folder / "one" / generation / file).unlink()
    with pytest.raises(TemplateCorrupt, match=f"{file}: it is missing"):
        store.open("one")
    new = await build(store, replace=True)
    assert store.verify("one").generation == new
    (store.folder / "one" / new / file).unlink()
    await store.remove("one")


async def test_a_link_to_nothing_is_damage_that_can_be_removed(store, build):
    await build(store)
    link = store.folder / "one" / "current"
    link.unlink()
    link.symlink_to("0" * 16)
    with pytest.raises(TemplateCorrupt):
        store.open("one")
    await store.remove("one")


# Names


async def test_a_sweep_leaves_what_is_not_ours(store, build):
    await build(store)
    theirs = [
        store.folder / "email" / "inbox",
        store.folder / "two" / "0123456789abcdef",
        store.folder / "one" / "mine",
    ]
    for path in theirs:
        path.mkdir(parents=True)
        (path / "data").write_text("precious")
    (store.folder / "one" / ".vimrc").write_text("precious")
    (store.folder / "notes.txt").write_text("precious")
    waste = store.folder / "one" / "fedcba9876543210"
    waste.mkdir()
    assert store.find_waste() == [waste]
    assert store.sweep() == [str(waste)]
    await store.remove("one")
    assert all((path / "data").read_text() == "precious" for path in theirs)
    assert (store.folder / "one" / ".vimrc").exists()
    strangers = {path.relative_to(store.folder).as_posix() for path in store.find_strangers()}
    assert strangers == {"email", "two", "notes.txt", "one"}
    assert store.list_names() == []
    shutil.rmtree(store.folder)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
async def test_a_sweep_that_cannot_see_what_is_in_force_takes_nothing(store, build, monkeypatch, number):
    generation = await build(store)

    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", refuse)
        assert store.sweep() == []
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            store.open("one")
    assert store.verify("one").generation == generation


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("file", ["memory", "state", "manifest.json"])
async def test_what_is_no_file_is_damage_that_can_be_removed(store, build, file, make):
    path = store.folder / "one" / await build(store) / file
    path.unlink()
    make(path)
    with pytest.raises(TemplateCorrupt, match=re.escape(file)):
        store.verify("one")
    await store.remove("one")
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("file", ["building", "lock"])
async def test_a_lock_that_is_no_file_is_named_and_can_be_removed(store, build, file, make):
    await build(store)
    path = store.folder / "one" / file
    path.unlink()
    make(path)
    with pytest.raises(HostError, match=re.escape(str(path))):
        await build(store, replace=True)
    await store.remove("one")
    assert list(store.folder.iterdir()) == []


async def test_a_generation_can_be_given_more_room_before_it_is_written(store) -> None:
    async with await store.stage("one", memory_bytes=MEMORY_BYTES) as staging:
        for asked, has in ((MEMORY_BYTES // 2, 1), (MEMORY_BYTES, 1), (2 * MEMORY_BYTES, 2)):
            staging.enlarge(asked)
            assert staging.memory_bytes == staging.memory_path.stat().st_size == has * MEMORY_BYTES
            assert os.fstat(staging.memory_fd).st_ino == staging.memory_path.stat().st_ino
        with pytest.raises(HostError, match="not enough memory"):
            staging.enlarge(1 << 50)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_bad_name_is_refused_everywhere(store, name):
    for call in (store.open, store.read_manifest, store.verify):
        with pytest.raises(ConfigError) as caught:
            call(name)
        assert (caught.value.field, caught.value.value) == ("name", name)
    for call in (store.remove, lambda name: store.stage(name, memory_bytes=MEMORY_BYTES)):
        with pytest.raises(ConfigError):
            await call(name)
    assert not store.folder.exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text(max_size=80) | st.text(alphabet="./-_a\n\0", max_size=6))
def test_any_name_stays_in_the_store(store, name):
    try:
        staging = asyncio.run(store.stage(name, memory_bytes=MEMORY_BYTES))
    except ConfigError:
        pass
    else:
        assert [path.name for path in store.folder.iterdir()] == [name]
        assert staging.memory_path.parent.parent == store.folder / name
        asyncio.run(staging.aclose())
    assert not store.folder.exists() or list(store.folder.iterdir()) == []
    assert {path.name for path in store.folder.parent.parent.iterdir()} <= {"runtime"}


# Damage


async def test_a_state_of_any_other_content_or_length_is_corrupt(store, build):
    generation = await build(store)
    path = store.folder / "one" / generation / "state"
    for other in (b"", STATE[:-1], STATE + b"x", STATE[1:] + b"x", bytes(len(STATE))):
        path.write_bytes(other)
        with pytest.raises(TemplateCorrupt) as caught:
            store.open("one")
        assert (caught.value.name, caught.value.path) == ("one", "state")


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES - 1, MEMORY_BYTES + 1, 2 * MEMORY_BYTES])
async def test_a_ram_file_of_another_size_is_corrupt(store, build, size):
    generation = await build(store)
    os.truncate(store.folder / "one" / generation / "memory", size)
    with pytest.raises(TemplateCorrupt, match=f"it has {size} bytes, {MEMORY_BYTES} were frozen"):
        store.open("one")


async def test_changed_ram_is_found_by_verifying(store, build):
    generation = await build(store)
    with (store.folder / "one" / generation / "memory").open("r+b") as file:
        file.seek(MEMORY_BYTES - 1)
        file.write(b"\1")
    store.open("one").__exit__(None, None, None)
    with pytest.raises(TemplateCorrupt) as caught:
        store.verify("one")
    assert caught.value.path == "memory"


async def test_a_manifest_cut_or_edited_on_disk_is_corrupt(store, build):
    generation = await build(store)
    path = store.folder / "one" / generation / "manifest.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole.replace(b'"cpus": 1', b'"cpus": 2'), b"\xff" * 100):
        path.write_bytes(damaged)
        for call in (store.open, store.read_manifest, store.verify):
            with pytest.raises(TemplateCorrupt):
                call("one")
    assert store.list_names() == ["one"]


async def test_the_manifest_of_another_template_is_corrupt(store, build):
    await build(store)
    os.rename(store.folder / "one", store.folder / "two")
    with pytest.raises(TemplateCorrupt, match="'one'"):
        store.open("two")


async def test_the_manifest_of_another_generation_is_corrupt(store, build):
    await build(store, generation="ffff")
    with pytest.raises(TemplateCorrupt, match="generation ffff"):
        store.open("one")


async def test_a_template_from_before_the_last_boot_is_stale(store, build):
    await build(store, host_boot_id="another boot")
    for call in (store.open, store.verify):
        with pytest.raises(TemplateStale) as caught:
            call("one")
        error = caught.value
        assert (error.field, error.have, error.want) == ("host.boot_id", "another boot", facts.boot_id())
    assert store.read_manifest("one").host_boot_id == "another boot"


async def test_a_template_of_another_format_is_stale(store, build):
    await build(store, format=999)
    for call in (store.open, store.read_manifest):
        with pytest.raises(TemplateStale) as caught:
            call("one")
        assert (caught.value.field, caught.value.have) == ("format", 999)
    assert store.list_names() == ["one"]


# Memory and mounts


async def test_memory_the_host_has_not_is_refused_with_the_arithmetic(store):
    available_mib = facts.available_memory_bytes() // MIB
    with pytest.raises(HostError, match="not enough memory") as caught:
        await store.stage("one", memory_bytes=2 * available_mib * MIB)
    assert f"the template needs {format_mib(2 * available_mib + STATE_HEADROOM // MIB)}" in caught.value.message
    told = re.search(r"([\d.]+) MiB can be had", caught.value.message)
    assert told is None or float(told[1]) == pytest.approx(available_mib, rel=0.5)
    assert caught.value.hint
    assert list(store.folder.iterdir()) == []


@as_root
async def test_the_tmpfs_is_private_bounded_and_runs_nothing(store):
    async with await store.stage("one", memory_bytes=MEMORY_BYTES) as staging:
        folder = staging.memory_path.parent
        lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        (fields,) = [fields for fields in lines if fields[4] == str(folder)]
        assert {"nosuid", "nodev", "noexec"} <= set(fields[5].split(","))
        assert fields[fields.index("-") + 1] == "tmpfs"
        assert {"mode=700", f"size={(MEMORY_BYTES + STATE_HEADROOM) // 1024}k"} <= set(fields[-1].split(","))
        info = os.statvfs(folder)
        assert info.f_blocks * info.f_frsize == MEMORY_BYTES + STATE_HEADROOM
        assert folder.stat().st_mode & 0o7777 == 0o700
    assert not folder.exists()


@as_root
async def test_the_state_fits_beside_ram_that_was_touched_wholly(store):
    async with await store.stage("one", memory_bytes=MEMORY_BYTES) as staging:
        os.pwrite(staging.memory_fd, b"x" * MEMORY_BYTES, 0)
        staging.state_path.write_bytes(bytes(STATE_HEADROOM // 2))
        with pytest.raises(OSError, match="No space left"):
            (staging.memory_path.parent / "more").write_bytes(bytes(STATE_HEADROOM))


class OrdinaryUser:
    """What a child process does as the user 65534, with a runtime folder that it owns."""

    def __init__(self, folder: Path) -> None:
        self.store = TemplateStore(folder / "runtime" / "templates")

    def run(self, body) -> int:
        def as_user():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            body(self.store)

        return exit_code_of(fork_child(as_user))


@pytest.fixture
def ordinary_user():
    """Its folder lies in the shared-memory tmpfs: a test's own temporary folder only its owner may enter."""
    folder = Path(f"/dev/shm/vmfork-test-user-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    yield OrdinaryUser(folder)
    unmount(folder / "runtime")
    shutil.rmtree(folder)
    assert mounts_below(folder) == []


@as_root
def test_an_ordinary_user_has_a_private_folder_and_no_mount(ordinary_user, build):
    def build_and_look(store):
        generation = asyncio.run(build(store))
        assert generation_folders(store) == [generation]
        for path in (store.folder.parent, store.folder, store.folder / "one", store.folder / "one" / generation):
            info = path.stat()
            assert (info.st_mode & 0o7777, info.st_uid) == (0o700, 65534)
        assert mounts_below(store.folder) == []
        asyncio.run(build(store, replace=True))
        store.verify("one")
        asyncio.run(store.remove("one"))
        assert list(store.folder.iterdir()) == []

    assert ordinary_user.run(build_and_look) == 0


@as_root
def test_an_ordinary_user_without_space_is_told_the_arithmetic(ordinary_user):
    runtime = ordinary_user.store.folder.parent
    runtime.mkdir()
    assert mount_tmpfs(runtime, size_bytes=16 * MIB)
    os.chown(runtime, 65534, 65534)

    def stage_too_much(store):
        with pytest.raises(HostError, match=r"the template needs 72 MiB, .*/templates/.* has 15 MiB free"):
            asyncio.run(store.stage("one", memory_bytes=64 * MIB))
        assert list(store.folder.iterdir()) == []

    assert ordinary_user.run(stage_too_much) == 0


@as_root
def test_an_ordinary_user_does_not_trust_a_folder_of_another(ordinary_user):
    """Both the folder itself and the one it lies in: who owns that could put another in its place."""

    def refuse(store):
        with pytest.raises(HostError, match="belongs to another user"):
            asyncio.run(store.stage("one", memory_bytes=MEMORY_BYTES))

    runtime = ordinary_user.store.folder.parent
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    os.chown(runtime, 1234, 1234)
    assert ordinary_user.run(refuse) == 0
    assert list(runtime.iterdir()) == []
    os.chown(runtime, 65534, 65534)
    runtime.chmod(0o700)
    (runtime / "templates").mkdir()
    (runtime / "templates").chmod(0o777)
    os.chown(runtime / "templates", 1234, 1234)
    assert ordinary_user.run(refuse) == 0
    assert list((runtime / "templates").iterdir()) == []
