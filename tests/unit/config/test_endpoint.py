"""Local addresses, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfork.config import FactoryConfig, Places
from vmfork.config.endpoint import check_socket_path, find_endpoint, find_metrics, parse_metrics_address
from vmfork.errors import ConfigError


@pytest.mark.parametrize("text", ["/run/x.sock", "unix:/run/x.sock", "unix:///run/x.sock"])
def test_one_socket_in_its_spellings(text) -> None:
    assert check_socket_path(text, field="f") == Path("/run/x.sock")


@pytest.mark.parametrize("text", ["x.sock", "", "/run/", "unix:x", "tcp:/x", "/a\nb", "/a\0b", "127.0.0.1:80", 7])
def test_what_is_no_absolute_path_is_refused(text) -> None:
    with pytest.raises(ConfigError):
        check_socket_path(text, field="f")


def test_the_limit_is_that_of_the_kernel() -> None:
    longest = "/" + "x" * 106
    assert check_socket_path(longest, field="f") == Path(longest)
    with pytest.raises(ConfigError, match="at most 107 bytes, this one 108"):
        check_socket_path(longest + "x", field="f")
    with pytest.raises(ConfigError, match="this one 109"):
        FactoryConfig(endpoint="/" + "ü" * 54)


def test_the_default_lies_in_the_runtime_folder() -> None:
    assert find_endpoint("", Places(Path("/h"), Path("/r"))) == Path("/r/cache.sock")
    assert find_endpoint("/e", Places(Path("/h"), Path("/r"))) == Path("/e")
    with pytest.raises(ConfigError) as caught:
        find_endpoint("", Places(Path("/h"), Path("/" + "r" * 100)))
    assert (caught.value.field, "[factory] endpoint" in caught.value.hint) == ("factory.endpoint", True)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("unix:/run/m.sock", "unix:/run/m.sock"),
        ("/run/m.sock", "unix:/run/m.sock"),
        ("127.0.0.1:9100", "127.0.0.1:9100"),
        ("localhost:0", "127.0.0.1:0"),
        ("[::1]:9100", "::1:9100"),
    ],
)
def test_metrics_addresses(text, meant) -> None:
    assert str(parse_metrics_address(text)) == meant


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:9100", ":9100", "9100", "[::]:9100", "host.example:1", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:²"],
)
def test_metrics_go_no_further_than_this_host(text) -> None:
    with pytest.raises(ConfigError):
        FactoryConfig(metrics=text)


def test_metrics_are_served_beside_the_endpoint_unless_told_otherwise() -> None:
    assert str(find_metrics("", Path("/r/cache.sock"))) == "unix:/r/cache.sock.metrics"
    assert str(find_metrics("127.0.0.1:9100", Path("/r/cache.sock"))) == "127.0.0.1:9100"
    assert find_metrics("none", Path("/r/cache.sock")) is None
    assert FactoryConfig(metrics="none").metrics == "none"


def test_an_endpoint_too_long_for_another_beside_it_is_served_all_the_same() -> None:
    assert find_metrics("", Path("/" + "x" * 98)) is not None
    assert find_metrics("", Path("/" + "x" * 99)) is None
