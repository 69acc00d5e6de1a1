"""NET: what is no address is refused, and an agent that may not change the network changes nothing."""

from __future__ import annotations

import pytest

from tests.unit.guest.test_session import ask, error_code
from vmfork.wire.frame import Opcode, encode_request

MAC, HERE = b"020000000001", (b"10.0.2.16", b"24", b"10.0.2.2")


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (b"",),
        (b"02000000000",),
        (b"0200000000011",),
        (b"02000000000g",),
        (b"02:00:00:00:",),
        (MAC, b"10.0.2.16"),
        (MAC, b"10.0.2.16", b"24"),
        (MAC, *HERE, b"more"),
        (MAC, b"10.0.2", *HERE[1:]),
        (MAC, b"10.0.2.256", *HERE[1:]),
        (MAC, b"::1", *HERE[1:]),
        (MAC, b"1" * 70_000, *HERE[1:]),
        (MAC, b"10.0.2.16\0", *HERE[1:]),
        (MAC, HERE[0], b"0", HERE[2]),
        (MAC, HERE[0], b"31", HERE[2]),
        (MAC, HERE[0], b"-1", HERE[2]),
        (MAC, HERE[0], b"99999999999999999999", HERE[2]),
        (MAC, *HERE[:2], b""),
        (MAC, *HERE[:2], b"name"),
    ],
    ids=repr,
)
def test_what_is_no_address_is_invalid(start_agent, fields) -> None:
    (frame,) = ask(start_agent().sock, encode_request(7, Opcode.NET, *fields), 1)
    assert error_code(frame) == "invalid"


@pytest.mark.parametrize("fields", [(MAC,), (MAC, *HERE)])
def test_an_agent_that_may_not_change_the_network_says_so(start_agent, fields) -> None:
    (frame,) = ask(start_agent().sock, encode_request(7, Opcode.NET, *fields), 1)
    assert error_code(frame) == "unsupported"
