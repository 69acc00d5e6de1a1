"""The console: read all the time, kept in bounded memory and a bounded file."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from vmfork.hypervisor.qemu.console import KEPT_BYTES, ConsoleTail


@pytest.fixture
async def console(tmp_path):
    """A console, the guest's end of it, and its file."""
    ours, guest = socket.socketpair()
    tail = ConsoleTail(ours, tmp_path / "console.log")
    with guest:
        yield tail, guest, tmp_path / "console.log"
        tail.close()
    assert ours.fileno() == -1


async def test_what_has_arrived_is_told_at_once(console) -> None:
    tail, guest, _ = console
    assert tail.text() == ""
    guest.sendall(b"one\n")
    assert tail.text() == "one\n"
    guest.sendall(b"two\n")
    assert tail.text() == "one\ntwo\n"


async def test_the_file_follows_without_being_asked(console, until) -> None:
    _, guest, path = console
    guest.sendall(b"panic: no init\n")
    await until(lambda: path.exists() and path.read_bytes() == b"panic: no init\n")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_chatty_guest_is_never_blocked_and_stays_bounded(console) -> None:
    tail, guest, path = console
    sizes: set[int] = set()
    lines = b"".join(b"%07d\n" % number for number in range(1 << 17))  # 1 MiB
    sending = asyncio.ensure_future(asyncio.to_thread(guest.sendall, lines))
    while not sending.done():
        await asyncio.sleep(0)
        if path.exists():
            sizes.add(path.stat().st_size)
    await sending
    assert tail.text().encode() == lines[-KEPT_BYTES:]
    assert max(sizes) <= 2 * KEPT_BYTES
    assert path.stat().st_size >= KEPT_BYTES
    assert lines.endswith(path.read_bytes())


async def test_a_flood_leaves_the_event_loop_to_others(console, monkeypatch) -> None:
    """One piece a turn, and then a rest; what is asked for is read at once all the same."""
    monkeypatch.setattr("vmfork.hypervisor.qemu.console.REST_S", 3600)
    tail, guest, _ = console
    guest.sendall(b"x" * 150_000)
    for _ in range(50):
        await asyncio.sleep(0)
    assert tail.total == 65_536
    tail.text()
    assert tail.total == 150_000


async def test_what_comes_after_a_rest_is_read_too(console, until) -> None:
    tail, guest, path = console
    for number in range(3):
        guest.sendall(b"%d\n" % number)
        await until(lambda seen=2 * number + 2: tail.total == seen)
    assert path.read_bytes() == b"0\n1\n2\n"


async def test_bytes_that_are_no_text(console) -> None:
    tail, guest, path = console
    guest.sendall(b"\xffok\xc3")
    assert tail.text() == "�ok�"
    assert path.read_bytes() == b"\xffok\xc3"


async def test_the_guests_end_closing_is_no_busy_loop(console, until) -> None:
    tail, guest, _ = console
    guest.sendall(b"last words")
    guest.close()
    await until(lambda: tail.text() == "last words")
    await asyncio.sleep(0)
    assert tail._loop.remove_reader(tail._socket) is False


async def test_closing_keeps_what_came_and_can_be_done_again(console) -> None:
    tail, guest, path = console
    guest.sendall(b"bye")
    tail.close()
    tail.close()
    assert tail.text() == "bye"
    assert path.read_bytes() == b"bye"


async def test_a_file_that_cannot_be_written_loses_nothing_in_memory(tmp_path) -> None:
    ours, guest = socket.socketpair()
    tail = ConsoleTail(ours, tmp_path / "gone" / "console.log")
    with guest:
        guest.sendall(b"text")
        assert tail.text() == "text"
        tail.close()
    assert os.listdir(tmp_path) == []


async def test_a_text_that_is_awaited_is_noticed_in_whatever_pieces_it_comes(console, until) -> None:
    tail, guest, _ = console
    told = []
    tail.on_text(b"System halted", lambda: told.append("!"))
    for piece in (b"[ 1.0] reboot: Sys", b"tem hal", b"ted\r\n"):
        assert told == []
        guest.sendall(piece)
        tail.text()
        await asyncio.sleep(0)
    await until(lambda: told == ["!"])
    guest.sendall(b"and more\n")
    tail.text()
    await asyncio.sleep(0)
    assert told == ["!"]


async def test_a_text_that_came_before_is_noticed_too(tmp_path, until) -> None:
    ours, guest = socket.socketpair()
    tail, told = ConsoleTail(ours, tmp_path / "console.log", before=b"reboot: System halted\n"), []
    tail.on_text(b"System halted", lambda: told.append("!"))
    await until(lambda: told == ["!"])
    tail.close()
    guest.close()
