"""One piece of code, run to its end in an interpreter of a running machine."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmfork.agent.deadline import deadline
from vmfork.code.frame import Answer, AnswerParser
from vmfork.code.line import Place, give_line, open_line, take_idle_line
from vmfork.code.result import CodeOutput, CodeResult, Done, parse_done, parse_names, parse_output
from vmfork.errors import DeadlineExceeded, GuestFileError, LimitExceeded
from vmfork.machine.decoding import PLAIN
from vmfork.machine.ways import find_program_env
from vmfork.wire.command import Command
from vmfork.wire.frame import Channel
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.code.line import CodeLine
    from vmfork.code.source import Code
    from vmfork.machine.decoding import Decoder, OutputListener
    from vmfork.machine.running import Running

GRACE_S = 5.0
# How long the server has to say that it has killed an interpreter.
_ANSWER_LIMIT_S = 10.0
_MOST_FILES = 1_000
_CHANNELS = {Answer.STDOUT: Channel.STDOUT, Answer.STDERR: Channel.STDERR}
_MOST_HINT = "take more (max_output), or as it comes: on_stdout"


async def run_code(
    running: Running,
    code: Code,
    *,
    listeners: Mapping[Channel, OutputListener] | None = None,
    max_output: int | None = MOST_BYTES,
    timeout_s: float | None = None,
    grace_s: float = GRACE_S,
) -> CodeResult:
    """The code has ended; what it wrote, showed and made, and how it failed, if it did.

    After `timeout_s` seconds it is interrupted, and `grace_s` later its interpreter killed; then raises
    `DeadlineExceeded`, and `LimitExceeded` likewise. That is raised too where the files that it made are more than what
    is left of `max_output`; then it has ended by itself. On cancel, and after any other error, the same is done behind
    us.
    """
    begun = time.perf_counter()
    call = _Call(listeners or {}, max_output)
    place = None if running.env is None else _make_place(code, running, running.env)
    line = None if place is None else await take_idle_line(running, place)
    if line is None or place is None:
        async with deadline("starting an interpreter in the guest", timeout_s):
            place = place or _make_place(code, running, await _ask_env(running))
            line = await open_line(running)
    try:
        await _follow(running, line, call, code, place, timeout_s=timeout_s, grace_s=grace_s, begun=begun)
    except BaseException:
        await line.abort()
        raise
    await give_line(running, line)
    try:
        files = await _read_files(running, code.made_in, call.made, call.room)
    except LimitExceeded as error:  # of one file, which says nothing of what the code wrote
        raise call.make_excess() from error
    return call.make_result(files, time.perf_counter() - begun)


async def _follow(
    running: Running,
    line: CodeLine,
    call: _Call,
    code: Code,
    place: Place,
    *,
    timeout_s: float | None,
    grace_s: float,
    begun: float,
) -> None:
    """The call is done. Raises `DeadlineExceeded` and `LimitExceeded`, with what it wrote, when it was broken off."""
    left = None if timeout_s is None else max(0.0, timeout_s - (time.perf_counter() - begun))
    scope = asyncio.timeout(left)
    try:
        async with scope:
            await line.ask(code.source, place, restart=code.restart, made_in=code.made_in)
            await _read(line, call)
    except TimeoutError:
        if not scope.expired():
            raise
    if call.done is None:
        async with deadline("ending an interpreter in the guest", grace_s + _ANSWER_LIMIT_S):
            await line.interrupt(running.agent, grace_s=grace_s)
            await _read(line, call, to_the_end=True)
    if scope.expired():
        assert timeout_s is not None
        assert call.done is not None
        lost = "; its interpreter had to be killed, and its state is lost" if call.done.is_lost else ""
        stdout, stderr = call.written
        hint = f"give it more time (timeout_s){lost}"
        raise DeadlineExceeded("the code", timeout_s, stdout=stdout, stderr=stderr, hint=hint)
    call.check_room()


async def _read(line: CodeLine, call: _Call, *, to_the_end: bool = False) -> None:
    """The call is done, or wrote more than it may."""
    while call.done is None and (to_the_end or not call.is_over):
        call.take(await line.read())


class _Call:
    """What came of one call until now."""

    def __init__(self, listeners: Mapping[Channel, OutputListener], max_output: int | None) -> None:
        self.done: Done | None = None
        self.made: list[str] = []
        self.is_over = False
        self._parser = AnswerParser()
        self._listeners = {c: (listener, PLAIN.decoder(c.name)) for c, listener in listeners.items()}
        self._written = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
        self._results: list[CodeOutput] = []
        self._max = max_output
        self._size = 0

    def take(self, data: bytes) -> None:
        """It is known. Raises `ProtocolError` for what makes no sense."""
        for kind, payload in self._parser.feed(data):
            if kind in _CHANNELS:
                self._take_output(_CHANNELS[kind], payload)
            elif kind is Answer.RESULT:
                self._keep(parse_output(payload), len(payload))
            elif kind is Answer.FILES:
                self.made = parse_names(payload, most=_MOST_FILES)
            else:
                self._take_end(kind, payload)

    def _take_end(self, kind: Answer, payload: bytes) -> None:
        if kind is Answer.VALUE:
            value = payload.decode(errors="replace")
            self._keep(CodeOutput({"text/plain": value}), len(payload))
            self.done = Done(value, None, is_lost=False)
        else:
            self.done = parse_done(payload)
        self._tell_rest()

    def _keep(self, output: CodeOutput, size: int) -> None:
        if self._has_room(size) == size:
            self._results.append(output)

    def _take_output(self, channel: Channel, data: bytes) -> None:
        if channel not in self._listeners:
            self._written[channel] += data[: self._has_room(len(data))]
        elif not self.is_over:
            _tell(*self._listeners[channel], data, is_last=False)

    def _tell_rest(self) -> None:
        for listener, decoder in self._listeners.values():
            _tell(listener, decoder, b"", is_last=True)

    def _has_room(self, size: int) -> int:
        """How much of it may be kept."""
        room = size if self._max is None else min(size, self._max - self._size)
        self.is_over = self.is_over or room < size
        self._size += room
        return room

    def check_room(self) -> None:
        """Raises `LimitExceeded` when it wrote more than it may."""
        if self.is_over:
            raise self.make_excess()

    def make_excess(self) -> LimitExceeded:
        """The error that it wrote, showed or made more than it may, with what it wrote."""
        stdout, stderr = self.written
        return LimitExceeded("the code", self._max or 0, stdout=stdout, stderr=stderr, hint=_MOST_HINT)

    @property
    def room(self) -> int | None:
        """How much more may come."""
        return None if self._max is None else self._max - self._size

    @property
    def written(self) -> tuple[bytes, bytes]:
        """Standard output and standard error."""
        return bytes(self._written[Channel.STDOUT]), bytes(self._written[Channel.STDERR])

    def make_result(self, files: Mapping[str, bytes], duration_s: float) -> CodeResult:
        """All of it."""
        assert self.done is not None
        stdout, stderr = map(PLAIN.decode, self.written)
        return CodeResult(
            stdout=stdout,
            stderr=stderr,
            value=self.done.value,
            results=tuple(self._results),
            error=self.done.error,
            files=files,
            is_state_lost=self.done.is_lost,
            duration_s=duration_s,
        )


def _tell(listener: Any, decoder: Decoder, data: bytes, *, is_last: bool) -> None:
    if text := decoder.decode(data, is_last=is_last):
        listener(text)


async def _read_files(running: Running, folder: str, names: list[str], room: int | None) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in names:
        with suppress(GuestFileError):  # gone again, or no file any more
            path = f"{folder.rstrip('/')}/{name}"
            files[path] = await running.agent.read_file(path, max_bytes=room)
            room = None if room is None else room - len(files[path])
    return files


def _make_place(code: Code, running: Running, env: Mapping[str, str]) -> Place:
    return Place(code.language, code.context, {**env, **find_program_env(running)})


async def _ask_env(running: Running) -> Mapping[str, str]:
    """What every program of the machine has, as one of them tells: for who did not make it."""
    _, content, _ = await running.agent.exec(Command(["cat", "/proc/self/environ"]), timeout_s=30.0)
    pairs = (pair.partition("=") for pair in content.decode(errors="replace").split("\0") if "=" in pair)
    running.env = {key: value for key, _, value in pairs}
    return running.env
