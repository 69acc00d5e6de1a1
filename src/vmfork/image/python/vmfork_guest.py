"""Keeps the random generators of a Python process apart when the virtual machine around it is forked.

A template freezes processes with what their generators are about to draw, so every fork of it would draw the same. A
process that calls `watch()` is told of its fork before the fork is handed to anyone, and what follows is reseeded:

    random              the module's own generator
    numpy.random        the legacy global generator, where NumPy is loaded
    ssl                 OpenSSL's generators of all threads, where `ssl` is loaded
    tempfile            the sequence of names
    uuid                the node and the clock sequence of `uuid1`; the node is a random one from then on

`secrets`, `os.urandom`, `random.SystemRandom` and `uuid.uuid4` draw from the kernel, which the agent reseeds.
Generators that a program made itself, a `random.Random(7)` or a `numpy.random.Generator`, are left alone: their
sequence may be wanted as it is. Where it is not, say so; and likewise for keys, tokens and connections that two
machines must not share:

    rng = numpy.random.default_rng()

    @vmfork_guest.on_fork
    def renew(generation: str) -> None:
        global rng
        rng = numpy.random.default_rng()

    vmfork_guest.watch()

What the process draws between its fork and the reseeding is not covered: it runs on in the meantime, for a few
milliseconds. A fork whose process does not answer in time, or answers that it failed, is destroyed. A process that
leaves the guest's network namespace calls `watch()` before it does.

A program may fork its machine itself, where that is allowed (`allow_guest_fork=N` of the host's `Template.fork`):

    index = vmfork_guest.fork(3)
    if index:  # in one of the three
        vmfork_guest.exit(message=attempt(index))
    results = [vmfork_guest.wait() for _ in range(3)]

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import atexit
import errno
import operator
import os
import signal
import socket
import stat
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ended", "ForkError", "exit", "fork", "generation", "on_fork", "reseed", "wait", "watch"]

# Not "Callable": the name exists only for type checkers.
Callback = TypeVar("Callback", bound="Callable[[str], object]")

_RUN = "/run/vmfork"
_SEED_SIZE = 64
_MESSAGE_SIZE = 4096
# What the host shows of an error; see NOTIFY in docs/reference/wire.md.
_TEXT_SIZE = 500
# Above so many sockets, those of ended processes are looked for: the agent takes 4,096 names.
_CROWD = 64
_TRIES = 5
_ANSWER_SIZE = 8192
_TEXT_LIMIT = 3000
_NOT_ALLOWED = "this machine may not be forked from inside: its owner says so by allow_guest_fork=N"


def watch() -> bool:
    """Whether this process is told of its forks from now on, by a thread of its own; its generators are reseeded once.

    False outside of a virtual machine, and in one whose agent tells nobody; nothing is done then. Calling it again
    does nothing. Children made by `os.fork()` are told too, on their own; programs that are executed are not.
    `OSError` when the socket cannot be made.
    """
    return _watcher.start()


def on_fork(callback: Callback) -> Callback:
    """`callback(generation)` is called after every fork, in the order of registration, when all else is reseeded.

    It runs in the watcher's thread and holds the fork up. When it raises, the fork is destroyed. Usable as a decorator.
    """
    _watcher.callbacks.append(callback)
    return callback


def generation() -> str:
    """What this virtual machine is called among all forks, 32 hex digits; empty outside of one."""
    try:
        with open(os.path.join(_RUN, "generation"), encoding="ascii") as file:
            return file.read().strip()
    except (FileNotFoundError, PermissionError):  # a host has a folder of that name, which is root's
        return ""


def reseed() -> None:
    """The generators named above draw something new. `RuntimeError` names the first that could not be reseeded."""
    for name, reseed_module in _RESEEDERS.items():
        module = sys.modules.get(name)
        if module is not None:
            _run(name, reseed_module, module)


def _run(name: str, step: Callable[[Any], object], argument: object) -> None:
    try:
        step(argument)
    except Exception as error:
        raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error


def _reseed_legacy(module: Any) -> None:
    module.seed()


def _reseed_openssl(module: Any) -> None:
    # Reseeds the generator of the process, from the kernel and this. Each thread's own follows before its next draw:
    # it compares counters with its parent's (OpenSSL 1.1.1 to 3, providers/implementations/rands/drbg.c).
    module.RAND_add(os.urandom(_SEED_SIZE), float(_SEED_SIZE))


def _reseed_tempfile(module: Any) -> None:
    # Made anew when it is missed.
    vars(module)["_name_sequence"] = None


def _reseed_uuid(module: Any) -> None:
    names = vars(module)
    # A random node has its multicast bit set (RFC 9562, 6.10).
    names["_node"] = int.from_bytes(os.urandom(6), "big") | 1 << 40
    # libuuid keeps its own node and clock sequence, which nobody can reset. Without it Python makes them itself.
    names["_generate_time_safe"] = None
    for name, value in (
        ("_last_timestamp", None),
        ("_last_timestamp_v6", None),
        ("_last_timestamp_v7", None),
        ("_last_counter_v7", 0),
    ):
        if name in names:
            names[name] = value


_RESEEDERS: dict[str, Callable[[Any], None]] = {
    "random": _reseed_legacy,
    "numpy.random": _reseed_legacy,
    "_ssl": _reseed_openssl,
    "tempfile": _reseed_tempfile,
    "uuid": _reseed_uuid,
}


class ForkError(RuntimeError):
    """The machine was not forked, and runs on alone. `reason` is a word for programs:

    not-allowed: this machine may not fork itself. limit: as many machines as may live do. no-room: the host has none
    for another. failed: the host says what.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Ended(NamedTuple):
    """How a machine ended that was made by `fork()`.

    `index` is what `fork()` gave there, `id` its name on the host. `status` is the exit status of its program; `None`
    where that is not known, and `message` says why then.
    """

    index: int  # type: ignore[assignment]
    id: str
    status: Optional[int]  # noqa: UP045 - evaluated, by Python 3.9 too
    message: str


def fork(count: int = 1) -> int:
    """This machine is forked, as it is, into `count` more: 0 here, and 1 to `count` in them, each its own.

    Everything goes on in each, every program and every thread, with a copy of memory and files; connections out of the
    machine do not. What `watch()` names is reseeded there, whether this process watches or not. A machine lasts no
    longer than the program that called, which ends it by `exit()` or by its own end; what it made then runs on.
    `ForkError` when none was made.
    """
    return _host.fork(count)


def wait(timeout_s: float | None = None) -> Ended:
    """How the next machine ended that this process made by `fork()`; waits until one has.

    `ChildProcessError` when there is none that was not told of, `TimeoutError` after `timeout_s` seconds.
    """
    return _host.wait(timeout_s)


def exit(status: int = 0, message: str = "") -> NoReturn:  # noqa: A001 - what os._exit is called where nothing is left
    """Ends this machine, which `fork()` made: whoever waits for it is told `status`, 0 to 255, and `message`.

    Nothing runs after it: no handlers, no buffers are written. `ForkError` in a machine that was not made so;
    `ValueError` for another status, or a message of more than 3,000 bytes.
    """
    _host.exit(status, message)


class _Watcher:
    """The process's socket, and the thread that answers on it."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[str], object]] = []
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._path = ""
        self._seen = ""
        self._renewer = 0
        self._lasts = False

    @property
    def is_watching(self) -> bool:
        return self._socket is not None

    def start(self) -> bool:
        with self._lock:
            if self._socket is not None:
                return True
            if not os.path.isdir(_folder()):
                return False
            self._open(renew=self._begin)
            if not self._lasts:
                os.register_at_fork(after_in_child=self._start_in_child)
                atexit.register(self._forget)
                self._lasts = True
            return True

    def _open(self, *, renew: Callable[[], None]) -> None:
        # Bound before the generation is read: a change after that is told, one before it is read.
        sock, self._path = _open_socket()
        try:
            renew()
            threading.Thread(target=self._serve, args=(sock,), name="vmfork-watch", daemon=True).start()
        except BaseException:
            sock.close()
            self._forget()
            raise
        self._socket = sock

    def _start_in_child(self) -> None:
        """Threads do not survive a fork, and the socket is the parent's."""
        self._lock = threading.Lock()
        parents, self._socket, self._path = self._socket, None, ""
        if parents is not None:
            # Held open here, it would seem to live on when the parent has ended.
            parents.close()
            self._open(renew=self._catch_up)

    def _begin(self) -> None:
        self._seen = generation()
        reseed()

    def _catch_up(self) -> None:
        """This child may have been made when the machine was forked and the parent was not told yet, or not done."""
        now = generation()
        # A callback that forks would be called by its child again, and so on.
        if now != self._seen and self._renewer != threading.get_ident():
            self._renew(now)
        self._seen = now
        self._renewer = 0

    def _forget(self) -> None:
        path, self._path = self._path, ""
        if path:
            with suppress(OSError):
                os.unlink(path)

    def _renew(self, now: str) -> None:
        self._renewer = threading.get_ident()
        try:
            reseed()
            for callback in tuple(self.callbacks):
                _run(getattr(callback, "__qualname__", repr(callback)), callback, now)
        finally:
            self._renewer = 0
        self._seen = now

    def _serve(self, sock: socket.socket) -> None:
        # A signal that the program waits for in another way must not end up here.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            told, sender = sock.recvfrom(_MESSAGE_SIZE)
            if sender:
                answer = self._answer(told)
                with suppress(OSError):  # the agent waits no longer
                    sock.sendto(answer, sender)

    def _answer(self, told: bytes) -> bytes:
        try:
            self._renew(told.decode("ascii", "replace"))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the host must hear of it
            return b"error " + _cut(str(error) or repr(error))
        return b"ok " + told


def _cut(text: str) -> bytes:
    """What the agent takes of it, and no half character at its end."""
    return text.encode("utf-8", "replace")[:_TEXT_SIZE].decode("utf-8", "ignore").encode()


def _folder() -> str:
    return os.path.join(_RUN, "watchers")


def _open_socket() -> tuple[socket.socket, str]:
    """A bound socket and its path."""
    for _ in range(_TRIES):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            return sock, _bind(sock)
        except BaseException as error:
            sock.close()
            # In the middle of its bind(2) a socket looks like that of an ended process, and was taken for one.
            if not isinstance(error, FileNotFoundError):
                raise
    raise FileNotFoundError(f"no socket can be kept in {_folder()}")


def _bind(sock: socket.socket) -> str:
    """The path of the socket, a name that nobody had: process ids come again, and in namespaces they are not unique."""
    folder = _folder()
    _remove_ended(folder)
    path = os.path.join(folder, f"{os.getpid()}.{os.urandom(4).hex()}")
    sock.bind(path)
    # Only the agent, which is root, has something to say here.
    os.chmod(path, 0o600)
    return path


def _remove_ended(folder: str) -> None:
    """Children that end by `os._exit()` leave their names, and a program may have many of them."""
    names = os.listdir(folder)
    if len(names) < _CROWD:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        for name in names:
            with suppress(OSError):
                _remove_if_ended(probe, os.path.join(folder, name))


def _remove_if_ended(probe: socket.socket, path: str) -> None:
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


class _Host:
    """The way by which this process asks the host: a question, then its answer. One at a time, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._lasts = False

    def fork(self, count: int) -> int:
        word, rest = self._ask(b"fork %d" % operator.index(count))
        if word != "forked":
            raise _refusal(word, rest)
        index = int(rest)
        if index and not _watcher.is_watching:
            reseed()
        return index

    def wait(self, timeout_s: float | None) -> Ended:
        limit = b"" if timeout_s is None else b"%d" % max(0, round(timeout_s * 1000))
        word, rest = self._ask(b"wait %b" % limit)
        if word == "none":
            raise ChildProcessError(errno.ECHILD, "this process made no machine that it was not told of")
        if word == "silent":
            raise TimeoutError(f"no machine ended within {timeout_s:g} s")
        if word != "ended":
            raise _refusal(word, rest)
        index, vm_id, status, *message = rest.split(" ", 3)
        return Ended(int(index), vm_id, int(status) if status else None, "".join(message))

    def exit(self, status: int, message: str) -> NoReturn:
        text = message.encode("utf-8", "replace")
        if not 0 <= status <= 255:
            raise ValueError(f"an exit status is 0 to 255, not {status}")
        if len(text) > _TEXT_LIMIT:
            raise ValueError(f"a message has {_TEXT_LIMIT} bytes at most, not {len(text)}")
        word, rest = self._ask(b"exit %d %b" % (status, text))
        # The machine ends before an answer comes, unless it is not to.
        raise _refusal(word, rest)

    def _ask(self, question: bytes) -> tuple[str, str]:
        with self._lock:
            try:
                sock = self._connected()
                sock.send(question)
                answer = sock.recv(_ANSWER_SIZE)
            except (ConnectionError, FileNotFoundError) as error:
                self._let_go()
                raise ForkError("not-allowed", _NOT_ALLOWED) from error
        if not answer:
            self._let_go()
            raise ForkError("not-allowed", _NOT_ALLOWED)
        word, _, rest = answer.decode("utf-8", "replace").partition(" ")
        return word, rest

    def _connected(self) -> socket.socket:
        """The same for as long as this process lives: by it the host knows whose the machines are."""
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.connect(os.path.join(_RUN, "ask"))
            except BaseException:
                sock.close()
                raise
            self._socket = sock
            if not self._lasts:
                os.register_at_fork(after_in_child=self._begin_anew)
                self._lasts = True
        return self._socket

    def _let_go(self) -> None:
        gone, self._socket = self._socket, None
        if gone is not None:
            gone.close()

    def _begin_anew(self) -> None:
        """The machines are those of the process that made them, and not of its children's."""
        self._lock = threading.Lock()
        self._let_go()


def _refusal(word: str, text: str) -> ForkError:
    reason, _, why = text.partition(" ")
    return ForkError(reason, why) if word == "refused" else ForkError("failed", f"the host answered {word!r}")


_watcher = _Watcher()
_host = _Host()
