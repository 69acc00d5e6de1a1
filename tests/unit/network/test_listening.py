"""Who listens in a guest, by its kernel's tables."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from vmfork.network.listening import parse_listening

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = " 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0\n"


def table(*rows: tuple[str, str]) -> bytes:
    lines = (f"   {number}: {local} 00000000:0000 {state}{REST}" for number, (local, state) in enumerate(rows))
    return (HEAD + "".join(lines)).encode()


def test_ports_of_the_loopback_at_which_somebody_listens_are_found() -> None:
    assert parse_listening(table(("0100007F:1F90", "0A"), ("00000000:0050", "0A"))) == {8080, 80}
    assert parse_listening(table(("0" * 32 + ":0016", "0A"), ("0" * 23 + "1000000:0017", "0A"))) == {22}
    assert parse_listening(table(("00000000000000000000000001000000:0017", "0A"))) == {23}
    # Connected; closing; at another address; what the kernel never says.
    assert parse_listening(table(("0100007F:1F90", "01"), ("0100007F:0050", "06"), ("0A00000A:0051", "0A"))) == set()


def test_a_table_of_this_host_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, open("/proc/net/tcp", "rb") as tcp:
        assert listener.getsockname()[1] in parse_listening(tcp.read())


@given(st.binary(max_size=300))
def test_whatever_a_guest_says_is_ports(data: bytes) -> None:
    assert all(0 <= port <= 65_535 for port in parse_listening(data + table(("00000000:0050", "0A"))))
