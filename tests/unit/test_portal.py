"""The background loop: after a fork, from its own callbacks, and at the interpreter's end, no call waits for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import asyncio, os, threading, warnings
from vmfork.errors import WrongContext
from vmfork.portal import Portal

async def answer():
    await asyncio.sleep(0)
    return 42

# Python 3.12 and newer warn of a fork beside other threads, which is what is tried here.
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)

def answered_in_a_child(portal):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if portal.run(answer()) == 42 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

portal = Portal()
"""


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own: the loop's thread is never stopped, and other tests fork, which wants no thread."""
    command = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    # On a busy host the loop tells, for -X dev, of a step that took long.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Executing ")]
    assert (done.returncode, complaints) == (0, [])
    return done


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    run_program(
        BEGIN
        + """
assert portal.run(answer()) == 42
assert answered_in_a_child(portal)
assert portal.run(answer()) == 42
"""
    )


def test_a_fork_while_other_threads_wait_and_start_does_not_block_the_child() -> None:
    run_program(
        BEGIN
        + """
begun, go_on = threading.Event(), threading.Event()

async def long():
    begun.set()
    await asyncio.to_thread(go_on.wait)

waiting = threading.Thread(target=lambda: portal.run(long()))
waiting.start()
begun.wait()
with portal._lock:  # as if the other thread were just starting the loop
    assert answered_in_a_child(portal)
go_on.set()
waiting.join()
"""
    )


def test_a_fork_while_the_loop_hands_work_to_its_first_thread_fails_no_call() -> None:
    """Python has a lock taken around each fork from then on: it was released, and had not been taken."""
    run_program(
        BEGIN
        + """
begun, go_on = threading.Event(), threading.Event()

def work():
    begun.set()
    go_on.wait()

def ask():
    portal.run(asyncio.to_thread(work))

def begin():
    if not begun.is_set():  # not in the child
        asking.start()
        begun.wait()

asking = threading.Thread(target=ask)
os.register_at_fork(before=begin)
assert answered_in_a_child(portal)
go_on.set()
asking.join()
"""
    )


def test_a_call_from_inside_a_callback_is_told() -> None:
    run_program(
        BEGIN
        + """
async def calls_back():
    portal.run(answer())

try:
    portal.run(calls_back())
except WrongContext as error:
    assert "from one of its own callbacks" in str(error)
else:
    raise AssertionError
assert portal.run(answer()) == 42
"""
    )


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
    assert told in run_program(PROGRAM.format(before=before, after=after)).stdout


def test_what_a_thread_makes_by_itself_after_a_call_was_made_where_it_made_it() -> None:
    run_program(
        BEGIN
        + """
from vmfork.host.bound import Bound, find_caller

async def make():
    return Bound("it").made_at

asked = find_caller(); made = portal.run(make())
assert made == asked, made
assert asyncio.run(make()) != made
"""
    )
