"""The background loop: after a fork, from its own callbacks, and at the interpreter's end, no call waits for ever."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from vmfork.errors import WrongContext
from vmfork.portal import Portal


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    portal = Portal()
    assert portal.run(answer()) == 42
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = 0 if portal.run(answer()) == 42 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert portal.run(answer()) == 42


def test_a_fork_while_another_thread_waits_does_not_block_the_child() -> None:
    portal, begun, go_on = Portal(), threading.Event(), threading.Event()

    async def long() -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait)

    waiting = threading.Thread(target=lambda: portal.run(long()))
    waiting.start()
    begun.wait()
    with portal._lock:  # as if the other thread were just starting the loop
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = 0 if portal.run(answer()) == 42 else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go_on.set()
    waiting.join()


def test_a_call_from_inside_a_callback_is_told() -> None:
    portal = Portal()

    async def calls_back() -> None:
        portal.run(answer())

    with pytest.raises(WrongContext, match="from one of its own callbacks"):
        portal.run(calls_back())
    assert portal.run(answer()) == 42


PROGRAM = """
import atexit, os, sys
{before}
from vmfork.portal import portal
import asyncio
async def answer(): return "answered"
{after}
portal.run(answer())
"""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("atexit.register(lambda: print(portal.run(answer())))", "", "answered"),
        ("", "atexit.register(lambda: print(portal.run(answer())))", "answered"),
        (
            "",
            "def machines():\n"
            "    try: yield\n"
            "    finally: portal.finish(answer()); print('left')\n"
            "g = machines(); next(g); sys.g = g",
            "",
        ),
        (
            "",
            "class Late:\n"
            "    def __del__(self, portal=portal, answer=answer, write=os.write):\n"
            "        try: portal.run(answer())\n"
            "        except Exception as error: write(1, type(error).__name__.encode())\n"
            "late = Late()",
            "Closed",
        ),
    ],
    ids=["registered before", "registered after", "an open generator", "a late finalizer"],
)
def test_the_end_of_the_interpreter_is_never_waited_for(before, after, told) -> None:
    program = PROGRAM.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout, done
    assert done.stderr == ""
