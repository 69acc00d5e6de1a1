"""What a copy of a running machine begins with."""

from __future__ import annotations

import pytest

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
