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
HUGE = 2 << 20
PR_SET_CHILD_SUBREAPER = 36
MADV_PAGEOUT = 21  # Linux 5.4; Python's mmap has it from 3.14 on
# Where a guest has memory that was added to it.
ADDED = 1 << 32
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
        self.added = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.monitor, ours = socket.socketpair()
        opened.enter_context(self.monitor)
        self._socket = opened.enter_context(ours)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()
        opened.callback(self._thread.join)
        opened.callback(ours.shutdown, socket.SHUT_RDWR)

    def _find(self, text: str) -> str:
        """Where we have what the guest has there."""
        (place,) = re.findall(r"gpa2hva (0x[0-9a-f]+)", text) or ["0x0"]
        memory = {0: self.memory, ADDED: self.added}[int(place, 16)]
        return f"Host virtual address for {place} (ram) is {ctypes.addressof(ctypes.c_char.from_buffer(memory)):#x}\r\n"

    def write(self, page: int, text: bytes) -> None:
        self.memory[page * PAGE : page * PAGE + len(text)] = text

    def wait_told(self, name: str) -> None:
        while name not in self.told:
            assert not self._ended.wait(0.01)

    def _answer(self) -> None:
        state = -1
        try:
            self._say({"QMP": {"version": {}, "capabilities": []}})
            while (heard := socket.recv_fds(self._socket, 65536, 1))[0]:
                data, fds, _, _ = heard
                state = fds[0] if fds else state
                for name, sign in re.findall(rb'"execute": "([a-z_-]+)"(, "id": "[a-z]+")?', data):
                    self._do(name.decode(), sign.decode(), state, data.decode())
        except ConnectionError:
            pass  # it has ended before it had read all
        finally:
            if state >= 0:
                os.close(state)

    def _do(self, name: str, sign: str, state: int, text: str) -> None:
        self.told.append(name)
        if callable(act := self.on.pop(name, None)):
            act()
        if name == self.refuses:
            self._say({"error": {"class": "GenericError", "desc": "no"}})
            return
        if name == "xen-save-devices-state":
            os.write(state, b"devices")
        answers = {
            "human-monitor-command": self._find(text),
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

    def __init__(
        self,
        emulator: Emulator,
        opened: ExitStack,
        *,
        way: str,
        layers: tuple[int, ...] = (),
        pieces: str = f"0+{SIZE}",
        beside: str = "",
        part: str = f"0+{SIZE}",
    ) -> None:
        faults = open_faults(opened) if way == "watched" else -1
        need("noted-writes", found=faults >= 0 or way != "watched")
        if way == "marked":
            need("marked-writes")
        self.target, self.state = os.memfd_create("target"), os.memfd_create("state")
        os.ftruncate(self.target, SIZE + 2 * HUGE)
        fds = [emulator.monitor.fileno()]
        fds += [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("mem", "pagemap")]
        fds += [faults, -1 if way == "twice" else os.open("/proc/self/clear_refs", os.O_WRONLY)]
        fds += [self.target, os.open(f"/proc/self/fd/{self.state}", os.O_WRONLY)]
        for fd in (*(each for each in fds[1:] if each not in (faults, -1)), self.state):
            opened.callback(os.close, fd)
        self.process = opened.enter_context(
            subprocess.Popen(
                [str(find_copier()), *map(str, fds), pieces, "all", beside, *(f"{fd}:{part}" for fd in layers)],
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

    def holes(self, pages: int = PAGES) -> set[int]:
        found, end = set(range(pages)), 0
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


every_way = pytest.mark.parametrize("way", ["watched", "marked", "twice"])


@every_way
def test_what_the_machine_has_for_itself_is_copied_and_nothing_else(opened, way) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"three")
    emulator.write(4, b"four")
    emulator.write(60, b"sixty")
    copy = Copy(emulator, opened, way=way)
    status, said = copy.end()
    assert (status, said.split()[:2]) == (0, ["copied", way])
    assert [copy.page(number)[:5] for number in (3, 4, 60)] == [b"three", b"four\x04", b"sixty"]
    assert copy.holes() == set(range(PAGES)) - {3, 4, 60}
    assert os.pread(copy.state, 100, 0) == b"devices"
    assert emulator.told[-3:] == ["stop", "xen-save-devices-state", "cont"]


@every_way
@pytest.mark.parametrize("when", ["add-fd", "stop"])
def test_what_is_written_until_it_stands_still_is_in_the_copy(opened, way, when) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"before")
    emulator.on[when] = lambda: (emulator.write(3, b"behind"), emulator.write(9, b"new"))
    copy = Copy(emulator, opened, way=way)
    assert copy.end()[0] == 0
    assert (copy.page(3)[:6], copy.page(9)[:3]) == (b"behind", b"new")


@pytest.mark.needs("no-marked-writes")
def test_where_the_kernel_can_do_neither_all_is_copied_twice(opened) -> None:
    """A kernel without marks takes what is written to clear_refs all the same."""
    emulator = Emulator(opened)
    emulator.write(3, b"before")
    emulator.on["stop"] = lambda: emulator.write(3, b"behind")
    copy = Copy(emulator, opened, way="neither")
    status, said = copy.end()
    assert (status, said.split()[:2]) == (0, ["copied", "twice"])
    assert copy.page(3)[:6] == b"behind"


def test_where_they_are_marked_only_what_was_written_is_copied_in_the_pause(opened) -> None:
    emulator = Emulator(opened)
    for page in range(32):
        emulator.write(page, b"own")
    emulator.on["stop"] = lambda: emulator.write(9, b"late")
    copy = Copy(emulator, opened, way="marked")
    status, said = copy.end()
    assert (status, said.split()[-2:]) == (0, ["pages", "1"])
    assert copy.page(9)[:4] == b"late"


def test_what_is_written_while_the_devices_are_saved_has_them_saved_again(opened) -> None:
    emulator = Emulator(opened)
    emulator.on["xen-save-devices-state"] = lambda: emulator.write(7, b"late")
    copy = Copy(emulator, opened, way="watched")
    assert copy.end()[0] == 0
    assert copy.page(7)[:4] == b"late"
    assert emulator.told.count("xen-save-devices-state") <= 2
    assert os.pread(copy.state, 100, 0) == b"devices"


def test_a_machine_that_stands_still_is_left_so(opened) -> None:
    emulator = Emulator(opened, running=False)
    copy = Copy(emulator, opened, way="watched")
    assert copy.end()[0] == 0
    assert not {"stop", "cont"} & set(emulator.told)


BESIDE = '{"execute": "blockdev-backup", "arguments": {"job-id": "copy"}}'


def test_what_is_copied_beside_begins_in_the_pause(opened) -> None:
    emulator = Emulator(opened)
    assert Copy(emulator, opened, way="watched", beside=BESIDE).end()[0] == 0
    began, saved = (emulator.told.index(name) for name in ("blockdev-backup", "xen-save-devices-state"))
    assert emulator.told.index("stop") < began < saved < emulator.told.index("cont")


def test_what_is_copied_beside_begins_in_one_that_stands_still_too(opened) -> None:
    emulator = Emulator(opened, running=False)
    assert Copy(emulator, opened, way="watched", beside=BESIDE).end()[0] == 0
    assert "blockdev-backup" in emulator.told


def test_layers_come_first_and_its_own_pages_over_them(opened) -> None:
    emulator = Emulator(opened)
    emulator.write(3, b"own")
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    os.ftruncate(layer, SIZE)
    os.pwrite(layer, b"layer", 3 * PAGE)
    os.pwrite(layer, b"layer", 5 * PAGE)
    copy = Copy(emulator, opened, way="watched", layers=(layer,))
    assert copy.end()[0] == 0
    assert (copy.page(3)[:3], copy.page(5)[:5]) == (b"own", b"layer")
    assert copy.holes() == set(range(PAGES)) - {3, 5}


@every_way
def test_memory_that_was_added_lies_behind_the_rest(opened, way) -> None:
    emulator = Emulator(opened)
    emulator.write(PAGES - 1, b"last")
    emulator.added[2 * PAGE : 2 * PAGE + 5] = b"added"
    assert emulator.added[7 * PAGE] == 0  # a page that was read, and has nothing in it
    emulator.on["stop"] = lambda: emulator.added.__setitem__(slice(0, 4), b"late")
    copy = Copy(emulator, opened, way=way, pieces=f"0+{SIZE},{ADDED}+{SIZE}")
    assert copy.end()[0] == 0
    assert (copy.page(PAGES - 1)[:4], copy.page(PAGES)[:4], copy.page(PAGES + 2)[:5]) == (b"last", b"late", b"added")
    assert copy.holes(2 * PAGES) == set(range(2 * PAGES)) - {PAGES - 1, PAGES, PAGES + 2}


def read_entries(mapping: mmap.mmap, pages: int) -> list[int]:
    """What /proc/PID/pagemap says of the first pages of `mapping` (Documentation/admin-guide/mm/pagemap.rst)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        return list(struct.unpack(f"{pages}Q", os.pread(pagemap.fileno(), 8 * pages, address // PAGE * 8)))


def find_swapped(mapping: mmap.mmap, pages: int) -> list[int]:
    mapping.madvise(MADV_PAGEOUT)
    return [page for page, entry in enumerate(read_entries(mapping, pages)) if entry >> 62 & 1]


def can_swap() -> bool:
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping[0] = 1
        return find_swapped(mapping, 1) == [0]


@every_way
def test_pages_that_were_swapped_out_are_in_the_copy(opened, way) -> None:
    need("swap", found=can_swap())
    emulator = Emulator(opened)
    for page in (3, 4, 60):
        emulator.write(page, b"own%d" % page)
    emulator.added[:5] = b"added"
    assert find_swapped(emulator.memory, PAGES) == [3, 4, 60]
    assert find_swapped(emulator.added, PAGES) == [0]
    emulator.on["stop"] = lambda: emulator.write(4, b"late")
    copy = Copy(emulator, opened, way=way, pieces=f"0+{SIZE},{ADDED}+{SIZE}")
    assert copy.end()[0] == 0
    assert [copy.page(page)[:5] for page in (3, 4, 60, PAGES)] == [b"own3\x03", b"late\x04", b"own60", b"added"]
    assert copy.holes(2 * PAGES) == set(range(2 * PAGES)) - {3, 4, 60, PAGES}


def huge_pages(mapping: mmap.mmap) -> int:
    """KiB of it that are parts of huge pages."""
    begin = f"{ctypes.addressof(ctypes.c_char.from_buffer(mapping)):x}-"
    found = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps").read_text().partition(begin)[2])
    return int(found[1]) if found else 0


@every_way
def test_pages_that_are_parts_of_huge_ones_are_in_the_copy(opened, way) -> None:
    """As those of a machine that was booted: QEMU asks for huge pages."""
    huge = mmap.mmap(-1, HUGE * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    huge.madvise(mmap.MADV_HUGEPAGE)
    for page in range(HUGE * 2 // PAGE):
        huge[page * PAGE] = page % 251 + 1
    need("huge-pages", found=huge_pages(huge) > 0)
    emulator = Emulator(opened)
    emulator.added = huge
    emulator.on["stop"] = lambda: huge.__setitem__(slice(7 * PAGE + 1, 7 * PAGE + 5), b"late")
    copy = Copy(emulator, opened, way=way, pieces=f"0+{SIZE},{ADDED}+{2 * HUGE}")
    assert copy.end()[0] == 0
    assert all(copy.page(PAGES + page)[0] == page % 251 + 1 for page in range(HUGE * 2 // PAGE))
    assert copy.page(PAGES + 7)[:5] == bytes([8]) + b"late"


def test_of_a_layer_the_part_that_is_asked_for_is_copied(opened) -> None:
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    for page in (3, 5, 6, 9):
        os.pwrite(layer, b"layer", page * PAGE)
    copy = Copy(Emulator(opened), opened, way="watched", layers=(layer,), part=f"{5 * PAGE}+{2 * PAGE}")
    assert copy.end()[0] == 0
    assert copy.holes() == set(range(PAGES)) - {5, 6}


@pytest.mark.parametrize(
    "pieces", ["", "0", "0+", "0+0", "1+4096", "0+4097", "0+4096,", "-4096+4096", "0+4096+4096", f"0+{1 << 64}"]
)
def test_what_is_no_memory_is_refused(opened, pieces) -> None:
    emulator = Emulator(opened)
    assert Copy(emulator, opened, way="twice", pieces=pieces).end() == (2, "")
    assert emulator.told == []


@pytest.mark.parametrize("part", ["", "0", "0+1", f"0+{SIZE}x"])
def test_what_is_no_part_of_a_layer_is_refused(opened, part) -> None:
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    emulator = Emulator(opened)
    status, said = Copy(emulator, opened, way="twice", layers=(layer,), part=part).end()
    assert (status, said) == (1, "failed copying what the machine was made from: Invalid argument\n")
    assert "stop" not in emulator.told


@pytest.mark.parametrize(
    "command", ["human-monitor-command", "add-fd", "query-status", "stop", "blockdev-backup", "xen-save-devices-state"]
)
def test_what_qemu_refuses_ends_the_copy_and_the_machine_runs(opened, command) -> None:
    emulator = Emulator(opened)
    emulator.refuses = command
    status, said = Copy(emulator, opened, way="watched", beside=BESIDE).end()
    assert (status, said[:7]) == (1, "failed ")
    assert ("cont" in emulator.told) == ("stop" in emulator.told)


@pytest.mark.parametrize("command", ["stop", "xen-save-devices-state", "cont"])
def test_killed_while_the_machine_stands_still_it_runs_on(opened, command) -> None:
    emulator = Emulator(opened)
    killed = threading.Event()
    emulator.on[command] = lambda: killed.wait(LIMIT_S)
    copy = Copy(emulator, opened, way="watched")
    emulator.wait_told(command)
    copy.process.send_signal(signal.SIGKILL)
    copy.process.wait(LIMIT_S)
    killed.set()
    copy.end()  # its second process has written what it had to
    emulator.wait_told("cont")


def test_it_leaves_no_process_for_init(opened) -> None:
    """In a container whose first process reaps nobody, one would be left of each copy."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    opened.callback(libc.prctl, PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    copy = Copy(Emulator(opened), opened, way="twice")
    assert copy.end()[0] == 0
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


def trace(way: str, opened: ExitStack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What a copier calls that copies in this way."""
    traces, traced = folder / "trace", folder / "traced"
    traced.write_text(f'#!/bin/sh\nexec strace -f -o {traces} {find_copier()} "$@"\n')
    traced.chmod(0o755)
    monkeypatch.setattr("tests.unit.copier.test_copier.find_copier", lambda: traced)
    emulator = Emulator(opened)
    emulator.write(3, b"three")
    layer = os.memfd_create("layer")
    opened.callback(os.close, layer)
    os.pwrite(layer, b"layer", 0)
    copy = Copy(emulator, opened, way=way, layers=(layer,))
    assert copy.end()[0] == 0
    return called(traces) - {"execve", "restart_syscall"}


@pytest.mark.needs("strace")
def test_it_makes_the_system_calls_its_readme_declares(opened, tmp_path, monkeypatch) -> None:
    check_declared(trace("watched", opened, tmp_path, monkeypatch), declared("copier")["at work"])


@pytest.mark.needs("strace")
def test_without_a_userfaultfd_it_makes_those_that_are_declared_for_that(opened, tmp_path, monkeypatch) -> None:
    calls = declared("copier")
    check_declared(trace("neither", opened, tmp_path, monkeypatch), calls["without a userfaultfd"], calls["at work"])
