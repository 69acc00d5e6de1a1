"""What goes wrong inside leaves as an error of vmfork's own; what is not vmfork's passes through as it is."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys

import pytest

from vmfork.border import guarded, translated, translating
from vmfork.border.arguments import CHECKS
from vmfork.border.failures import CallbackError
from vmfork.errors import ConfigError, HostError, InternalError
from vmfork.progress import Progress


@guarded
class Border:
    """A method of each kind, that raises what it is given."""

    async def wait(self, error: BaseException) -> None:
        raise error

    def look(self, error: BaseException) -> None:
        raise error

    @classmethod
    async def make(cls, error: BaseException) -> None:
        raise error

    async def pieces(self, error: BaseException):
        yield 1
        raise error


async def take_all(pieces) -> None:
    async for _ in pieces:
        pass


WAYS = {
    "awaited": lambda error: asyncio.run(Border().wait(error)),
    "plain": lambda error: Border().look(error),
    "of the class": lambda error: asyncio.run(Border.make(error)),
    "in pieces": lambda error: asyncio.run(take_all(Border().pieces(error))),
}
by_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@by_way
@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_the_host_refuses_is_a_host_error_with_a_hint(way, number) -> None:
    refused = OSError(number, os.strerror(number), "/a/file")
    with pytest.raises(HostError) as told:
        way(refused)
    assert str(told.value) == f"/a/file: {os.strerror(number)}"
    assert told.value.hint
    assert told.value.__cause__ is refused


@by_way
@pytest.mark.parametrize("kind", [TypeError, AttributeError, OverflowError, ValueError, KeyError, AssertionError])
def test_whatever_nobody_foresaw_is_told_as_a_bug(way, kind) -> None:
    with pytest.raises(InternalError, match=kind.__name__) as told:
        way(kind("nonsense"))
    assert "report" in told.value.hint
    assert isinstance(told.value.__cause__, kind)


@by_way
@pytest.mark.parametrize("error", [ConfigError("a", 1, "b"), MemoryError(), asyncio.CancelledError(), SystemExit(3)])
def test_what_needs_no_translation_passes(way, error) -> None:
    with pytest.raises(type(error)) as told:
        way(error)
    assert type(told.value) is type(error)


def test_what_a_callback_raises_is_its_callers() -> None:
    def listen(_event: Progress) -> None:
        raise OSError(errno.EPIPE, "his own")

    told = CHECKS["ProgressListener"]("progress", listen)
    with pytest.raises(CallbackError) as passing:
        told(Progress(task="t", step="s"))
    with pytest.raises(BrokenPipeError, match="his own"), translating():
        raise passing.value


def test_what_the_host_is_said_to_refuse_has_a_hint() -> None:
    assert translated(HostError("the keeper does not take it")).hint
    assert translated(HostError("the keeper does not take it", hint="take another")).hint == "take another"


def test_a_host_without_a_thread_left_is_told() -> None:
    assert "ulimit -u" in translated(RuntimeError("can't start new thread")).hint


def test_a_name_that_is_no_text_is_told() -> None:
    assert "x" in str(translated(OSError(errno.EIO, "failed", b"/x\xff")))
    assert str(translated(OSError("nothing but this"))) == "nothing but this"


def test_the_blocking_api_says_so_where_it_cannot_begin() -> None:
    """In an interpreter of its own: the loop begins once. It needs descriptors that are not there."""
    program = """
import os, resource
import vmfork, vmfork.blocking, vmfork.api.vm
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
try:
    vmfork.VM.list()
except vmfork.HostError as error:
    assert "ulimit -n" in error.hint, error.hint
else:
    raise AssertionError("no error")
for fd in taken:
    os.close(fd)
assert vmfork.VM.list() == []
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
