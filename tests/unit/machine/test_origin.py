"""Where a machine came from, as people and programs are told."""

from __future__ import annotations

import pytest

from vmfork.machine.origin import Origin, origin_of
from vmfork.records import read_record, write_record


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (origin_of("web"), "forked from template 'web'"),
        (origin_of(""), "booted"),
        (Origin(kind="template", reason="grown", made_from="template 'web'"), "forked from template 'web' (grown)"),
        (Origin(kind="pool"), "kept ready in this process"),
        (
            Origin(kind="server", made_from="template 'web'"),
            "kept ready by the VM cache server, a fork of template 'web'",
        ),
        (Origin(kind="booted", reason="host", detail="no room"), "booted (no room)"),
        (Origin(kind="booted", reason="quarantined"), "booted (quarantined)"),
    ],
)
def test_it_is_told_in_one_line(origin, told) -> None:
    assert str(origin) == told


def test_the_next_owner_is_told_too() -> None:
    origin = Origin(kind="server", reason="grown", made_from="template 'web'")
    assert read_record(Origin, write_record(origin)) == origin
