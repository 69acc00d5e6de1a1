"""Builds that are cut off: cancelled, interrupted, killed."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.image.builds import DEADLINE_S, LEAST, find_processes, list_store, wait_step
from vmfork.image.build import build_image
from vmfork.image.store import ImageStore

pytestmark = pytest.mark.image


@pytest.mark.parametrize("step", ["reading the package lists", "unpacking packages"])
async def test_cancel_ends_every_process_and_leaves_nothing(images_dir, step):
    at_step = asyncio.Event()
    steps = []

    def listen(event) -> None:
        steps.append(event.step)
        if event.step == step:
            at_step.set()

    task = asyncio.create_task(build_image("one", LEAST, store=ImageStore(images_dir), progress=listen))
    async with asyncio.timeout(DEADLINE_S):
        await at_step.wait()
    assert len(find_processes(images_dir)) > 1
    task.cancel()
    # At once: nobody waits for apt to come to an end of its own.
    assert (await asyncio.wait([task], timeout=30))[0] == {task}
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert type(caught.value) is asyncio.CancelledError
    assert find_processes(images_dir) == []
    assert list_store(images_dir) == []
    assert steps[-1] == step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing(home, images_dir, start_build, number):
    child = start_build(home)
    wait_step(child, "reading the package lists")
    child.send_signal(number)
    output, log = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 128 + number  # docs/reference/cli.md
    assert (output, log) == ("", f"interrupted by {number.name}\n")
    assert find_processes(images_dir) == []
    assert list_store(images_dir) == []


def test_a_sweep_while_a_killed_build_is_still_ending_does_no_harm(home, images_dir, start_build):
    child = start_build(home)
    wait_step(child, "downloading packages")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    while find_processes(images_dir):
        ImageStore(images_dir).sweep()
    ImageStore(images_dir).sweep()
    assert list_store(images_dir) == []
