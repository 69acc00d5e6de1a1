"""A process beside its *keeper*: a small program that hands it from owner to owner, and ends it when it has none.

keeper/README.md draws the states and the messages.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from contextlib import ExitStack, suppress
from enum import IntEnum
from functools import cache
from signal import SIGKILL
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from vmfork.errors import DeadlineExceeded, HostError, StoreBusy, VMNotFound
from vmfork.host.jail import NO_JAIL
from vmfork.host.process import WatchedProcess, identify, read_argv, spawn
from vmfork.host.shipped import find_shipped
from vmfork.host.sockets import connect_unix, listen_unix
from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmfork.host.jail import Jail
    from vmfork.host.process import ProcessIdentity

TOKEN_SIZE = 16
# Longer than the keeper takes for anything, however busy the host.
_ANSWER_LIMIT_S = 10.0
# ANSWERED_LIMIT of keeper/message.h.
_MOST_PASSED = 5

# `struct request_message` of keeper/message.h, and the answer: its kind and a number.
_REQUEST = struct.Struct("<B16sQ")
_ANSWER = struct.Struct("<BI")


class Request(IntEnum):
    """What the owner asks of the keeper, or whoever wants to become it."""

    DETACH = 1
    TAKE = 2
    TAKEN = 3
    MEMORY = 4


class Answer(IntEnum):
    """What the keeper says."""

    HELLO = 1
    OK = 2
    REFUSED = 3
    BUSY = 4
    BAD = 5


class Beside(NamedTuple):
    """A child that serves the process, and that the keeper ends with it: its pid, a pidfd, and its user's claim.

    When it ends first, the keeper asks for a card without a carrier at `monitor`, the path of the process's QMP socket.
    """

    pid: int
    process: int
    lease: int | None
    monitor: Path


class Parked(NamedTuple):
    """Open descriptors that an owner leaves with the keeper, for the next owner.

    While the process has no owner, the keeper reads `console` into `log`, and keeps `log`.
    """

    line: int
    console: int
    log: int


def encode_request(kind: Request, *, token: bytes = bytes(TOKEN_SIZE), ttl_s: float = 0.0) -> bytes:
    """A request's bytes. `ttl_s` counts for DETACH alone; 0 is no limit."""
    return _REQUEST.pack(kind, token, round(ttl_s * 1000) or int(ttl_s > 0))


# keeper.c: NOT_STARTED, and what it says then.
REFUSED_STATUS, REFUSED_TEXT = 126, "cannot contain the program: "

# The hint where it is gone, or says no more.
_LOST = "its keeper was killed or stopped, or the host was too busy for it: take another machine"

_GONE = "the machine's keeper is gone, so it cannot be handed over"

# Nobody is there, or is any more.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)


@cache
def find_keeper() -> Path:
    """The keeper's binary as the package ships it. Raises `HostError` when it was not built."""
    return find_shipped(f"keeper-{os.uname().machine}", what="the keeper")


class _Pair:
    """A child, its keeper, and what stands beside it. All are children of this process, which reaps them whoever owns
    them by then.
    """

    # Processes that were passed on, and their keepers. The loop that would reap them may be gone, so they are looked at
    # whenever another is started or one of them is dropped.
    passed_on: ClassVar[set[int]] = set()

    # Those that are to be collected. Of what only a dropped machine refers to, the garbage collector finalizes the
    # socket before the machine or after it, as it comes.
    uncollected: ClassVar[set[_Pair]] = set()

    def __init__(self, child: subprocess.Popen[bytes], keeper: socket.socket, beside_pid: int | None = None) -> None:
        self._child = child
        self._keeper = keeper
        self._beside_pid = beside_pid
        self.keeper_pid: int | None = None
        self.uncollected.add(self)

    def pass_on(self, keeper_pid: int) -> None:
        """Both are reaped by their pids from now on: the child may outlive us, and the socket is about to close."""
        self.keeper_pid = keeper_pid
        self.passed_on.update(self._pids())
        self.uncollected.discard(self)
        self._child.returncode = 0  # else it warns, once it is dropped, that its process still runs

    def collect(self) -> int:
        """The child's exit status, 0 when another has collected it. It has ended, or is about to."""
        if self.keeper_pid is None:
            status, keeper_pid = self._child.wait(), _read_hello(self._keeper)
        else:
            status, keeper_pid = _wait(self._child.pid), self.keeper_pid
        for pid in (keeper_pid, self._beside_pid):
            if pid is not None:
                _reap(pid)
        self.passed_on.difference_update(self._pids())
        self.uncollected.discard(self)
        return status

    def _pids(self) -> set[int]:
        return {pid for pid in (self._child.pid, self.keeper_pid, self._beside_pid) if pid is not None}

    def end(self) -> None:
        """Both are gone."""
        self._child.kill()
        self.collect()


class KeptProcess(WatchedProcess):
    """Owner of a process and of the connection to its keeper. When we end, however that is, the keeper kills it."""

    # Its keeper is another's. It is watched for as long as the loop runs, to be reaped; a loop that ends tells nobody.
    _is_released = False

    def __init__(
        self, identity: ProcessIdentity, argv: tuple[str, ...], keeper: socket.socket, pair: _Pair | None
    ) -> None:
        super().__init__(identity, argv, pair.collect if pair is not None else _know_nothing)
        self._keeper = keeper
        self._pair = pair

    def __del__(self) -> None:
        # Only what is somebody else's: the collector may come here before it ends a machine that was dropped.
        if self._is_released:
            self._stop_watching()
            _reap_passed_on()

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log_fd: int,
        listen_at: Path,
        lock_fd: int | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        confined: bool = False,
        jail: Jail = NO_JAIL,
        memory_fd: int | None = None,
        held_fds: Sequence[int] = (),
        beside: Beside | None = None,
    ) -> Self:
        """A running child and its keeper, which can be asked for the child at the path `listen_at`.

        `pass_fds` are inherited under the same numbers; output and errors of both go to `log_fd`. The keeper holds
        `lock_fd` open until the process has ended. The child ends with status 127 when there is no such program. `env`
        is all of its environment, by default none. A `confined` one cannot start others, nor do anything else that an
        emulator has no need for (keeper/confine.c). It starts inside of `jail`, and ends with status 126 where this
        host refuses a part of that. By `memory_fd`, one end of a pair of sockets, the keeper gets what a copy of its
        memory is made by; the child has the other end. The keeper holds `held_fds` for that, too.
        What is `beside` it is ours to reap from now on, unless this raises, and ends with it.
        """
        _reap_passed_on()
        with ExitStack() as always, ExitStack() as on_failure:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.enter_context(ours)
            always.enter_context(theirs)
            listener = always.enter_context(listen_unix(listen_at, kind=socket.SOCK_SEQPACKET))
            own = [theirs.fileno(), listener.fileno()]
            own += [*([] if lock_fd is None else [lock_fd]), *([] if jail.lease is None else [jail.lease.fileno()])]
            memory = [] if memory_fd is None else [memory_fd]
            own += [*memory, *held_fds, *_list_open(beside)]
            numbers = [str(theirs.fileno()), str(listener.fileno()), "-1" if lock_fd is None else str(lock_fd)]
            options = [*(["--confined"] if confined else []), *jail.to_arguments()]
            options += [*_pairs("--memory", memory), *_pairs("--hold", held_fds), *_tell_beside(beside)]
            command = [str(find_keeper()), *numbers, *options, "--", *argv]
            child = spawn(command, log_fd=log_fd, pass_fds=(*own, *pass_fds), env=env or {})
            pair = _Pair(child, ours, None if beside is None else beside.pid)
            on_failure.callback(pair.end)
            process = cls(identify(child), tuple(argv), ours, pair)
            on_failure.pop_all()
        return process

    @classmethod
    async def take(
        cls, path: Path, *, token: bytes, identity: ProcessIdentity, vm_id: str
    ) -> tuple[Self, tuple[int, ...]]:
        """The process, once `confirm` was called, and open descriptors: line, console and, where it had one, the lock.

        Raises `VMNotFound` when there is no keeper, or its process waits under another token, and `StoreBusy` when it
        has an owner. When we end, or close it, before `confirm`, the process is killed.
        """
        with ExitStack() as on_failure:
            try:
                keeper = on_failure.enter_context(connect_unix(path, kind=socket.SOCK_SEQPACKET))
                keeper.send(encode_request(Request.TAKE, token=token))
            except (HostError, OSError) as error:
                if _tells_absence(error):
                    raise VMNotFound(vm_id) from error
                raise
            answer, _, passed = await receive_answer(keeper)
            for fd in passed:
                on_failure.callback(os.close, fd)
            if answer is Answer.BUSY:
                raise StoreBusy(f"VM {vm_id}", "another process", hint="it must be detached there first")
            if answer is not Answer.OK:
                if answer is Answer.REFUSED:
                    raise VMNotFound(vm_id, "the handle is of an earlier time", hint="attach it by its id")
                raise VMNotFound(vm_id)
            try:
                process = cls(identity, read_argv(identity.pid), keeper, None)
            except ProcessLookupError as error:
                raise VMNotFound(vm_id) from error
            on_failure.callback(process.forget)  # another process may have the pid by now; it was only watched
            if not identity.is_alive():
                raise VMNotFound(vm_id)
            on_failure.pop_all()
        return process, passed

    def confirm(self) -> None:
        """We own the process. Raises `HostError` when the keeper has ended it because we took too long."""
        try:
            self._keeper.send(encode_request(Request.TAKEN))
        except OSError as error:
            raise HostError("the machine was ended while it was taken over", hint=_LOST) from error

    async def park(self, parked: Parked, *, token: bytes, ttl_s: float) -> None:
        """The process has no owner. The keeper waits `ttl_s` seconds (0: for ever) for whoever knows `token`.

        After an error or a cancel it may be parked or not: kill it.
        """
        request = encode_request(Request.DETACH, token=token, ttl_s=ttl_s)
        try:
            socket.send_fds(self._keeper, [request], parked)
            answer, number, _ = await receive_answer(self._keeper)
            if answer is Answer.HELLO and self._pair is not None:
                self._pair.pass_on(number)
                answer, _, _ = await receive_answer(self._keeper)
        except OSError as error:
            raise HostError(_GONE, hint=_LOST) from error
        if answer is None:  # its end may be seen as late as this: a child that has not begun its program holds it open
            raise HostError(_GONE, hint=_LOST)
        if answer is not Answer.OK:
            raise HostError("the machine's keeper does not take it", hint=_LOST)

    def release(self) -> None:
        """The connection to the keeper is closed. The process must be parked. It is still reaped, if it is a child."""
        self._keeper.close()
        self._is_released = True

    def end(self) -> None:
        """The process is gone, and reaped with its keeper if they are children, without an event loop."""
        super().end()
        self._keeper.close()

    async def aclose(self) -> None:
        """The process is gone, and reaped if it is a child; its keeper is gone too."""
        await super().aclose()
        if self._keeper.fileno() < 0:
            return
        try:
            # A keeper that is no child of ours closes its end as its last act. One that hangs is not waited for.
            with suppress(DeadlineExceeded, OSError):
                while (await receive_answer(self._keeper))[0] is not None:
                    pass
        finally:
            self._keeper.close()


def _list_open(beside: Beside | None) -> list[int]:
    return [] if beside is None else [fd for fd in (beside.process, beside.lease) if fd is not None]


def _tell_beside(beside: Beside | None) -> list[str]:
    if beside is None:
        return []
    lease = [] if beside.lease is None else [beside.lease]
    monitor = ["--monitor", str(beside.monitor)]
    return [*_pairs("--beside", [beside.process]), *monitor, *_pairs("--beside-lease", lease)]


def _pairs(option: str, fds: Sequence[int]) -> list[str]:
    return [part for fd in fds for part in (option, str(fd))]


def _tells_absence(error: HostError | OSError) -> bool:
    """Whether nobody listens where a keeper would; anything else is a refusal of this host's, and it may be there."""
    refused = error.__cause__ if isinstance(error, HostError) else error
    return isinstance(refused, OSError) and refused.errno in _ABSENT


def _read_hello(keeper: socket.socket) -> int | None:
    """The keeper's pid, unless it was read before. It is sent before all else, so this does not wait for long."""
    try:
        keeper.settimeout(_ANSWER_LIMIT_S)
        data = keeper.recv(_ANSWER.size)
        keeper.setblocking(False)
    except OSError:
        return None
    kind, number = _ANSWER.unpack(data) if len(data) == _ANSWER.size else (None, 0)
    return number if kind == Answer.HELLO else None


def _wait(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        # A child that was not reaped keeps its pid. It ends by itself, unless somebody stopped it.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)


def _reap_passed_on() -> None:
    """What was passed on and has ended is reaped."""
    for pid in list(_Pair.passed_on):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            ended = True
        if ended:
            _Pair.passed_on.discard(pid)


def _know_nothing() -> None:
    """`None`: nobody can know the exit status of a process that is no child of theirs."""


async def receive_answer(keeper: socket.socket) -> tuple[Answer | None, int, tuple[int, ...]]:
    """The next answer, its number, and the descriptors passed with it. `None` as answer: the keeper has ended."""
    keeper.setblocking(False)
    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            await wait_readable(keeper.fileno())
    except TimeoutError as error:
        raise DeadlineExceeded("an answer of the machine's keeper", _ANSWER_LIMIT_S, hint=_LOST) from error
    try:
        data, passed, _, _ = socket.recv_fds(keeper, _ANSWER.size, _MOST_PASSED, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None, 0, ()
    try:
        kind, number = _ANSWER.unpack(data)
        return Answer(kind), number, tuple(passed)
    except (struct.error, ValueError):  # its end, or a keeper that is none
        for fd in passed:
            os.close(fd)
        return None, 0, ()
