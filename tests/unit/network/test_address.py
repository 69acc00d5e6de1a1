"""Where on the host a port is to be had: what is an address, and what the host says to it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from vmfork.errors import ConfigError, HostError
from vmfork.network.address import HostAddress, bound_address, listen, parse_address, parse_forward, parse_port

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0", "127.0.0.1:0"), ("8080", "127.0.0.1:8080"), (":8080", "127.0.0.1:8080"),
        ("localhost:65535", "127.0.0.1:65535"), ("[::1]:80", "[::1]:80"), ("0.0.0.0:80", "0.0.0.0:80"),
        ("/run/a.sock", "/run/a.sock"), ("unix:/run/a.sock", "/run/a.sock"),
    ],
)  # fmt: skip
def test_an_address_is_read_and_shown(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "http", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1: 8",
        "127.0.0.1:٨٠", "127.0.0.1:000080", "example.org:80", "::1:80", "[127.0.0.1]:80", "127.1:80", "[::1:80",
        "/", "/a/", "/x" * 60, "unix:a.sock", "a\0b:80", "\udc80:80", "/a\0b",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_address(text)
    assert told.value.field == "host"
    assert told.value.hint


@pytest.mark.parametrize("text", ["0", "65536", "http", "", "8 0", "-1"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a port from 1 to 65535"):
        parse_port(text, field="port")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port_is_taken_and_told_and_one_that_is_taken_is_named(host: str) -> None:
    with listen(HostAddress(host)) as listener:
        address = bound_address(listener, HostAddress(host))
        assert address.port > 0
        with pytest.raises(HostError, match=f":{address.port}: Address already in use") as told:
            listen(address)
        assert "somebody has it" in told.value.hint
    listen(address).close()


def test_an_address_of_another_host_is_named() -> None:
    # TEST-NET-1 of RFC 5737: nobody's.
    with pytest.raises(HostError, match=r"cannot listen at 192\.0\.2\.1:0") as told:
        listen(parse_address("192.0.2.1:0"))
    assert "no address of this host" in told.value.hint


def test_a_socket_takes_the_place_of_one_that_a_killed_process_left(tmp_path: Path) -> None:
    address = parse_address(str(tmp_path / "s"))
    listen(address).close()  # nobody removes the name
    with listen(address) as listener:
        with pytest.raises(HostError, match="Address already in use"):
            listen(address)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(address.path))
            listener.accept()[0].close()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HostError, match="Address already in use"):
        listen(parse_address(str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(HostError, match="No such file or directory"):
        listen(parse_address(str(tmp_path / "missing" / "s")))


@pytest.mark.parametrize(
    ("text", "host", "guest"),
    [
        ("80", "127.0.0.1:0", 80), ("8080:80", "127.0.0.1:8080", 80), ("127.0.0.1:0:80", "127.0.0.1:0", 80),
        ("[::1]:8080:80", "[::1]:8080", 80), ("/run/a.sock:80", "/run/a.sock", 80), (":80", "127.0.0.1:0", 80),
    ],
)  # fmt: skip
def test_the_order_is_that_of_docker(text: str, host: str, guest: int) -> None:
    address, port = parse_forward(text)
    assert (str(address), port) == (host, guest)


@pytest.mark.parametrize("text", ["", ":", "80:", "0", "8080:0", "80:http", "a:b:80", "1:2:3", "65536", "/run/a.sock"])
def test_what_is_no_pair_of_ports_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_forward(text)
    assert (told.value.field, bool(told.value.hint)) == ("port", True)
