"""DISK: an agent whose machine is not its own looks for no disk, and mounts none."""

from __future__ import annotations

import pytest

from tests.unit.guest.test_session import ask, error_code
from vmfork.wire.frame import Opcode, encode_request


@pytest.mark.parametrize("privileged", [False, True])
def test_an_agent_that_serves_another_root_mounts_nothing(start_agent, privileged, tmp_path) -> None:
    arguments = ("--privileged", "--root", str(tmp_path)) if privileged else ()
    (frame,) = ask(start_agent(*arguments).sock, encode_request(7, Opcode.DISK), 1)
    assert error_code(frame) == "unsupported"
    assert list(tmp_path.iterdir()) == []


def test_it_asks_for_nothing_more(start_agent) -> None:
    (frame,) = ask(start_agent().sock, encode_request(7, Opcode.DISK, b"vda"), 1)
    assert error_code(frame) == "invalid"
