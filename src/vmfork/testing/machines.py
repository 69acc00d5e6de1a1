"""The machines of one test: made, told of when it fails, kept if that is wanted, and ended."""

from __future__ import annotations

import asyncio
import re
import secrets
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import pytest

from vmfork import Template, aio
from vmfork.errors import VMForkError
from vmfork.hint import suggest
from vmfork.portal import portal
from vmfork.testing.recorded import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork import VM

_CONSOLE_LINES = 60
_LABELS = {"vmfork.test": "failed"}
_NO_FAILURE = (pytest.skip.Exception, pytest.xfail.Exception, SkipTest)
# What the agent writes, among what the kernel does, begins so (guest/fatal.c).
_AGENT = "vmfork-agent: "


class Machines:
    """Owner of the machines of the test `name`. `options` are what it was marked with, the name of a template among it.

    `template` is theirs where nothing else is said. Raises `UsageError` for an option that no fork has.
    """

    def __init__(self, name: str, options: dict[str, Any], template: Template | None) -> None:
        known = ("template", *[each for each in signature(aio.Template.fork).parameters if each != "self"])
        for option in options:
            if option not in known:
                told = f"{suggest(option, known)}it takes {', '.join(known)}"
                raise pytest.UsageError(f"the mark vmfork has no {option!r}: {told}")
        self._name = name
        self._options = options
        self._template = template
        self._made: list[_Made] = []

    def fork(self, **options: Any) -> VM:
        """A fork, of the test's own template where it names one."""
        name, asked = self._read(options)
        own = self._template
        vm = (own if own is not None and name == own.name else Template.open(name)).fork(**asked)
        self._made.append(_Made(vm, None))
        return vm

    async def fork_async(self, **options: Any) -> aio.VM:
        """The same on this event loop."""
        name, asked = self._read(options)
        template = await aio.Template.open(name)
        vm = await template.fork(**asked)
        self._made.append(_Made(vm, asyncio.get_running_loop()))
        return vm

    def _read(self, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The template's name, and what a fork of it is given."""
        asked = {**self._options, **options}
        return asked.pop("template", self._template.name if self._template is not None else ""), asked

    def describe(self) -> list[tuple[str, str]]:
        """What each has to say: its console, which the kernel and the agent write to, and its last programs."""
        return [(f"vmfork: machine {made.vm.id}", made.describe()) for made in self._made]

    def keep(self) -> list[tuple[str, str]]:
        """A fork of each goes on as it is now, and how to get in."""
        return [(f"vmfork: machine {made.vm.id} is kept", made.keep(self._name)) for made in self._made]

    def keeping(self, test: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The test, after whose failure the machines of its event loop are kept at once: anyio ends that with it."""

        @wraps(test)
        async def run(*args: Any, **options: Any) -> Any:
            try:
                return await test(*args, **options)
            except _NO_FAILURE:
                raise
            except (Exception, pytest.fail.Exception):
                for made in self._made:
                    await made.keep_here(self._name)
                raise

        return run

    def close(self) -> None:
        """They have ended."""
        while self._made:
            self._made.pop().close()


class _Made:
    """One machine, and what was last run in it. `loop` is its own, where it has one."""

    def __init__(self, vm: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.vm = vm
        self._loop = loop
        self._kept = ""
        # All that the blocking form is asked goes to its awaitable twin.
        self._recorder = Recorder(getattr(vm, "_twin", vm))

    def describe(self) -> str:
        """What it says at most: the end of its console, what its agent wrote there, and its last programs."""
        lines = self.vm.console_tail().splitlines()
        agent = [line for line in lines if _AGENT in line][-_CONSOLE_LINES:] or ["it wrote nothing"]
        programs = [f"[program] {said}" for said in self._recorder.describe(self._run)]
        return "\n".join(["[console]", *lines[-_CONSOLE_LINES:], "[agent]", *agent, *programs])

    def keep(self, name: str) -> str:
        """A fork of it goes on, with nobody. The command that gets in; or why there is none."""
        if self._kept:
            return self._kept
        wanted = _make_name(name)
        try:
            if self._loop is None:
                for client in self.vm.fork(lasting=True, name=wanted, labels=_LABELS):
                    client.close()
            else:
                self._run(lambda: self._fork_lasting(wanted))
        except (VMForkError, RuntimeError) as error:
            return f"it could not be: {error}"
        return _tell_kept(wanted)

    async def keep_here(self, name: str) -> None:
        """The same, for `keep` to tell, where its event loop is the one that runs."""
        if self._loop is not asyncio.get_running_loop():
            return
        wanted = _make_name(name)
        try:
            await self._fork_lasting(wanted)
        except VMForkError as error:
            self._kept = f"it could not be: {error}"
        else:
            self._kept = _tell_kept(wanted)

    async def _fork_lasting(self, wanted: str) -> None:
        for client in await self.vm.fork(lasting=True, name=wanted, labels=_LABELS):
            await client.aclose()

    def close(self) -> None:
        """It has ended."""
        if self._loop is None:
            self.vm.close()
        elif self._loop.is_closed():
            asyncio.run(self.vm.aclose())
        else:
            self._run(self.vm.aclose)

    def _run(self, call: Callable[[], Any]) -> Any:
        if self._loop is None:
            return portal.run(call())
        if self._loop.is_closed():
            raise RuntimeError("its event loop has ended with the test")
        return self._loop.run_until_complete(call())


def _make_name(test: str) -> str:
    """A name of a machine that tells which test it is of."""
    return f"{re.sub('[^a-z0-9]+', '-', test.lower()).strip('-')[-40:].strip('-')}-{secrets.token_hex(2)}"


def _tell_kept(name: str) -> str:
    return f"get in:  vmfork shell {name}\nend it:  vmfork stop {name}"
