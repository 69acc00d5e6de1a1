"""SIGKILL between any two changes on disk: a template still is what it was, and the next command cleans up.

A child process runs the scenario and kills itself before its n-th step, for every n until it gets through. A step is a
system call that changes the disk or a lock or lists a folder (seen by an audit hook, so below `shutil.rmtree` too), and
each line of the code that mounts and that writes files, for calls that raise no audit event.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.children import exit_code_of, fork_child
from tests.unit.store.probe import MEMORY_BYTES, mounts_below
from vmfork.errors import TemplateNotFound
from vmfork.host import folders, tmpfs

# A process for each of some hundred steps: 60 s were too few on a host where eight others worked.
pytestmark = pytest.mark.limit_s(300)

CALLS = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.listdir",
    "os.scandir",  # by which pathlib lists from Python 3.13 on
    "fcntl.flock",
}
TRACED = (tmpfs.__file__, folders.__file__)


def die_before_step(number: int) -> None:
    """From now on this process lives until the step with that number, counted from 0."""
    left = number

    def step():
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def audit(event, args):
        if event in CALLS or (event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT):
            step()

    def trace_lines(frame, event, arg):
        if event == "line":
            step()
        return trace_lines

    sys.addaudithook(audit)
    sys.settrace(lambda frame, event, arg: trace_lines if frame.f_code.co_filename in TRACED else None)


def crashes(scenario):
    """Runs `scenario` in children that die ever later, and yields after each death; ends when one gets through."""
    for number in range(10_000):

        def run(number=number):
            die_before_step(number)
            scenario()

        code = exit_code_of(fork_child(run))
        if code == 0:
            assert number > 5, "hardly a step was seen"
            return
        assert code == -signal.SIGKILL
        yield number
    pytest.fail("the scenario has no end")


def generation_in_force(store) -> str | None:
    """Verified wholly; `None` when there is no template, which is the one error that may be."""
    try:
        return store.verify("one").generation
    except TemplateNotFound:
        return None


def check_swept(store, tmp_path, generation):
    """One command later, nothing is left but what is in force."""
    assert store.list_names() == (["one"] if generation else [])
    assert generation_in_force(store) == generation
    folder = store.folder / "one"
    if generation is None:
        assert not folder.exists()
        assert mounts_below(tmp_path) == []
    else:
        assert {path.name for path in folder.iterdir()} == {"building", "lock", "current", generation}
        assert mounts_below(tmp_path) in ([], [str(folder / generation)])


def test_a_first_build_leaves_a_whole_template_or_none(store, build, tmp_path):
    outcomes = set()
    for _ in crashes(lambda: asyncio.run(build(store))):
        generation = generation_in_force(store)
        check_swept(store, tmp_path, generation)
        outcomes.add(generation is not None)
        if generation is not None:
            asyncio.run(store.remove("one"))
    assert outcomes == {True, False}


def test_a_replacement_leaves_the_old_template_or_the_new_one(store, build, tmp_path):
    old = asyncio.run(build(store))
    outcomes = set()
    for _ in crashes(lambda: asyncio.run(build(store, replace=True))):
        generation = generation_in_force(store)
        assert generation is not None
        check_swept(store, tmp_path, generation)
        outcomes.add(generation != old)
        old = generation
    assert outcomes == {True, False}


def test_a_removal_leaves_the_template_or_none(store, build, tmp_path):
    generation = asyncio.run(build(store))
    outcomes = set()
    for _ in crashes(lambda: asyncio.run(store.remove("one"))):
        found = generation_in_force(store)
        assert found in (generation, None)
        check_swept(store, tmp_path, found)
        outcomes.add(found is not None)
        if found is None:
            generation = asyncio.run(build(store))
    assert outcomes == {True, False}


def test_a_sweep_that_dies_is_finished_by_the_next(store, build, tmp_path):
    """The waste is that of a build that died with RAM and state in place, beside a template in force."""
    generation = asyncio.run(build(store))

    async def die_before_commit():
        await store.stage("one", memory_bytes=MEMORY_BYTES, replace=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave_waste():
        assert exit_code_of(fork_child(lambda: asyncio.run(die_before_commit()))) == -signal.SIGKILL

    leave_waste()
    assert len(list((store.folder / "one").iterdir())) > 4
    for _ in crashes(store.sweep):
        check_swept(store, tmp_path, generation)
        leave_waste()


def test_the_next_build_sweeps_too(store, build, tmp_path):
    async def die_before_commit():
        await store.stage("one", memory_bytes=MEMORY_BYTES)
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(fork_child(lambda: asyncio.run(die_before_commit()))) == -signal.SIGKILL
    assert len(list((store.folder / "one").iterdir())) == 2
    generation = asyncio.run(build(store))
    check_swept(store, tmp_path, generation)


@pytest.mark.needs("root")
def test_what_belongs_to_a_live_builder_is_not_swept(store, build):
    ready, go_on = os.pipe(), os.pipe()

    async def build_slowly():
        async with await store.stage("one", memory_bytes=MEMORY_BYTES):
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)

    pid = fork_child(lambda: asyncio.run(build_slowly()))
    os.read(ready[0], 1)
    assert store.sweep() == []
    assert len(mounts_below(store.folder)) == 1
    os.write(go_on[1], b"x")
    assert exit_code_of(pid) == 0
    assert mounts_below(store.folder) == []
    for fd in (*ready, *go_on):
        os.close(fd)
