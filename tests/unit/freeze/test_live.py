"""What a copy of a running machine begins with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vmfork.errors import HostError
from vmfork.freeze import live
from vmfork.freeze.live import Memory
from vmfork.host.copier import Layer, Span

BOOTED, ADDED = Span(0, 256), Span(1 << 32, 128)
WHOLE, BASE, BEHIND = Span(0, 384), Span(0, 256), Span(256, 128)


@pytest.mark.parametrize(
    ("held", "added_is_of_a_file", "whole", "layers"),
    [
        ([], False, True, []),
        ([], False, False, []),
        ([3], False, True, [Layer(3, BASE)]),
        ([3], False, False, []),
        ([3], True, True, [Layer(3, WHOLE)]),
        ([3], True, False, [Layer(3, BEHIND)]),
        ([3, 4], False, True, [Layer(3, BASE), Layer(4, BASE)]),
        ([3, 4], False, False, [Layer(4, BASE)]),
        ([3, 4], True, True, [Layer(3, BASE), Layer(4, WHOLE)]),
        ([3, 4], True, False, [Layer(4, WHOLE)]),
    ],
)
def test_what_was_added_is_read_from_the_last_file_alone(held, added_is_of_a_file, whole, layers) -> None:
    memory = Memory((BOOTED, ADDED), BOOTED.size + ADDED.size * added_is_of_a_file)
    assert memory.size_bytes == 384
    assert memory.list_layers(held, whole=whole) == layers


# What the host has, and how much of the 30 MiB of the emulator is its guest's. 64 MiB more are asked for.
@pytest.mark.parametrize(("available_mib", "guest_mib", "fits"), [(94, 30, True), (90, 26, True), (90, 27, False)])
def test_the_page_table_is_walked_only_where_room_is_scarce(monkeypatch, available_mib, guest_mib, fits) -> None:
    walked = []

    def walk(_facts, _pid):
        walked.append(True)
        return SimpleNamespace(guest_private=guest_mib << 20)

    monkeypatch.setattr(live.facts, "available_memory_bytes", lambda: available_mib << 20)
    monkeypatch.setattr(live, "read_private", lambda _pid: 30 << 20)
    monkeypatch.setattr(live, "measure_memory", walk)
    running = SimpleNamespace(machine=SimpleNamespace(identity=SimpleNamespace(pid=1)), facts=None, id="vm")
    if fits:
        live._check_room(running, [])
    else:
        with pytest.raises(HostError, match=r"needs 91.*27 MiB of its own"):
            live._check_room(running, [])
    assert bool(walked) == (available_mib < 94)
