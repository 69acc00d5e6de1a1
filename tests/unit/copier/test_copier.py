"""The copier, with a stand-in for QEMU: its monitor here in the test, its memory the test's own."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.unit.system_calls import called, check_declared, declared
from vmfork.host.copier import find_copier

PAGE, PAGES = 4096, 64
SIZE = PAGE * PAGES
LIMIT_S = 20.0
# linux/userfaultfd.h, for x86-64 and arm64; asynchronous write protection is of Linux 6.7.
UFFDIO_API, WANTED = 0xC018AA3F, 1 | 1 << 12 | 1 << 13 | 1 << 15
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]


class Emulator:
    """Answers as QEMU does. `refuses` is a command that fails; `on` are called when a command comes."""

    def __init__(self, opened: ExitStack, *, running: bool = True) -> None:
        self.told: list[str] = []
        self.refuses = ""
        self.on: dict[str, object] = {}
        self.running = running
        lower = os.memfd_create("lower")
        opened.callback(os.close, lower)
        for page in range(PAGES):
            os.pwrite(lower, bytes([page]) * PAGE, page * PAGE)
        self.memory = mmap.mmap(lower, SIZE, flags=mmap.MAP_PRIVATE)
        self.monitor, ours = socket.socketpair()
        opened.enter_context(self.monitor)
        self._socket = opened.enter_context(ours)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()
        opened.callback(self._thread.join)
        opened.callback(ours.shutdown, socket.SHUT_RDWR)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def write(self, page: int, text: bytes) -> None:
        self.memory[page * PAGE : page * PAGE + len(text)] = text

    def wait_told(self, name: str) -> None:
        while name not in self.told:
            assert not self._ended.wait(0.01)

    def _answer(self) -> None:
        self._say({"QMP": {"version": {}, "capabilities": []}})
        state = -1
        try:
            while (heard := socket.recv_fds(self._socket, 65536, 1))[0]:
                data, fds, _, _ = heard
                state = fds[0] if fds else state
                for name, sign in re.findall(rb'"execute": "([a-z_-]+)"(, "id": "[a-z]+")?', data):
                    self._do(name.decode(), sign.decode(), state)
        except ConnectionError:
            pass  # it has ended before it had read all
        finally:
            if state >= 0:
                os.close(state)

    def _do(self, name: str, sign: str, state: int) -> None:
        self.told.append(name)
        if callable(act := self.on.pop(name, None)):
            act()
        if name == self.refuses:
            self._say({"error": {"class": "GenericError", "desc": "no"}})
            return
        if name == "xen-save-devices-state":
            os.write(state, b"devices")
        answers = {
            "human-monitor-command": f"Host virtual address for 0x0 (ram) is {self.address:#x}\r\n",
            "add-fd": {"fdset-id": 0, "fd": 9},
            "query-status": {"status": "running" if self.running else "paused", "running": self.running},
        }
        self._say({"event": "SOMETHING", "timestamp": {"seconds": 1, "microseconds": 2}})
        self._say({"return": answers.get(name, {})}, sign)

    def _say(self, message: object, sign: str = "") -> None:
        self._socket.sendall(json.dumps(message).encode()[:-1] + sign.encode() + b"}\r\n")


def open_faults(opened: ExitStack) -> int:
    """A userfaultfd that notes writes, as the library beside QEMU opens it; -1 where the kernel has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | 1)
    if fd < 0:
        return -1
    opened.callback(os.close, fd)
    try:
        fcntl.ioctl(fd, UFFDIO_API, struct.pack("QQQ", 0xAA, WANTED, 0))
    except OSError:
        return -1
    return int(fd)


class Copy:
    """One copy of the emulator's machine."""

    def __init__(self, emulator: Emulator, opened: ExitStack, *, watched: bool, layers: tuple[int, ...] = ()) -> None:
        faults = open_faults(opened) if watched else -1
        need("noted-writes", found=faults >= 0 or not watched)
        self.target, self.state = os.memfd_create("target"), os.memfd_create("state")
        os.ftruncate(self.target, SIZE)
        fds = [emulator.monitor.fileno()]
        fds += [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("mem", "pagemap")]
        fds += [faults, self.target, os.open(f"/proc/self/fd/{self.state}", os.O_WRONLY)]
        for fd in (*fds[1:3], *fds[4:], self.state):
            opened.callback(os.close, fd)
        self.process = opened.enter_context(
            subprocess.Popen(
                [str(find_copier()), *map(str, (*fds, SIZE)), "all", *map(str, layers)],
                stdout=subprocess.PIPE,
                pass_fds=[fd for fd in (*fds, *layers) if fd >= 0],
            )
        )
        # Only the copier and its second process hold it: its end is theirs.
        emulator.monitor.close()

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, said.decode()

    def page(self, number: int) -> bytes:
        return os.pread(self.target, PAGE, number * PAGE)

    def holes(self) -> set[int]:
        found, end = set(range(PAGES)), 0
        while True:
            try:
                start = os.lseek(self.target, end, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(self.target, start, os.SEEK_HOLE)
            found -= set(range(start // PAGE, end // PAGE))


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield stack


every_way = pytest.mark.parametrize("watched", [True, False], ids=["watched", "twice"])


@every_way
def test_what_the_machine_has_for_itself_is_copied_and_nothing_else(opened, watched) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"three")
    emulator.write(4, b"four")
    emulator.write(60, b"sixty")
    copy = Copy(emulator, opened, watched=watched)
    status, said = copy.end()
    assert (status, said.split()[:2]) == (0, ["copied", "watched" if watched else "twice"])
    assert [copy.page(number)[:5] for number in (3, 4, 60)] == [b"three", b"four\x04", b"sixty"]
    assert copy.holes() == set(range(PAGES)) - {3, 4, 60}
    assert os.pread(copy.state, 100, 0) == b"devices"
    assert emulator.told[-3:] == ["stop", "xen-save-devices-state", "cont"]


@every_way
@pytest.mark.parametrize("when", ["add-fd", "stop"])
def test_what_is_written_until_it_stands_still_is_in_the_copy(opened, watched, when) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"before")
    emulator.on[when] = lambda: (emulator.write(3, b"behind"), emulator.write(9, b"new"))
    copy = Copy(emulator, opened, watched=watched)
    assert copy.end()[0] == 0
    assert (copy.page(3)[:6], copy.page(9)[:3]) == (b"behind", b"new")


def test_what_is_written_while_the_devices_are_saved_has_them_saved_again(opened) -> None:
    emulator = Emulator(opened)
    emulator.on["xen-save-devices-state"] = lambda: emulator.write(7, b"late")
    copy = Copy(emulator, opened, watched=True)
    assert copy.end()[0] == 0
    assert copy.page(7)[:4] == b"late"
    assert emulator.told.count("xen-save-devices-state") <= 2
    assert os.pread(copy.state, 100, 0) == b"devices"


def test_a_machine_that_stands_still_is_left_so(opened) -> None:
    emulator = Emulator(opened, running=False)
    copy = Copy(emulator, opened, watched=True)
    assert copy.end()[0] == 0
    assert not {"stop", "cont"} & set(emulator.told)


def test_layers_come_first_and_its_own_pages_over_them(opened) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"own")
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    os.ftruncate(layer, SIZE)
    os.pwrite(layer, b"layer", 3 * PAGE)
    os.pwrite(layer, b"layer", 5 * PAGE)
    copy = Copy(emulator, opened, watched=True, layers=(layer,))
    assert copy.end()[0] == 0
    assert (copy.page(3)[:3], copy.page(5)[:5]) == (b"own", b"layer")
    assert copy.holes() == set(range(PAGES)) - {3, 5}


@pytest.mark.parametrize(
    "command", ["human-monitor-command", "add-fd", "query-status", "stop", "xen-save-devices-state"]
)
def test_what_qemu_refuses_ends_the_copy_and_the_machine_runs(opened, command) -> None:
    emulator = Emulator(opened)
    emulator.refuses = command
    status, said = Copy(emulator, opened, watched=True).end()
    assert (status, said[:7]) == (1, "failed ")
    assert ("cont" in emulator.told) == ("stop" in emulator.told)


@pytest.mark.parametrize("command", ["stop", "xen-save-devices-state", "cont"])
def test_killed_while_the_machine_stands_still_it_runs_on(opened, command) -> None:
    emulator = Emulator(opened)
    killed = threading.Event()
    emulator.on[command] = lambda: killed.wait(LIMIT_S)
    copy = Copy(emulator, opened, watched=True)
    emulator.wait_told(command)
    copy.process.send_signal(signal.SIGKILL)
    copy.process.wait(LIMIT_S)
    killed.set()
    copy.end()  # its second process has written what it had to
    emulator.wait_told("cont")


@pytest.mark.needs("strace")
def test_it_makes_the_system_calls_its_readme_declares(opened, tmp_path, monkeypatch) -> None:
    trace, traced = tmp_path / "trace", tmp_path / "traced"
    traced.write_text(f'#!/bin/sh\nexec strace -f -o {trace} {find_copier()} "$@"\n')
    traced.chmod(0o755)
    monkeypatch.setattr("tests.unit.copier.test_copier.find_copier", lambda: traced)
    emulator = Emulator(opened)
    emulator.write(3, b"three")
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    os.pwrite(layer, b"layer", 0)
    copy = Copy(emulator, opened, watched=True, layers=(layer,))
    assert copy.end()[0] == 0
    check_declared(called(Path(trace)) - {"execve", "restart_syscall"}, declared("copier")["at work"])
