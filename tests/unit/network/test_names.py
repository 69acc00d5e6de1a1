"""Names on a guest's loopback: the lines of its hosts file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.errors import ConfigError
from vmfork.network.hostname import check_name, find_name
from vmfork.network.names import add_line, drop_line, drop_lines

DEBIAN = "127.0.0.1\tlocalhost\n127.0.1.1\tvm-0123\n::1\tlocalhost ip6-localhost"


def test_a_name_gets_the_next_address_above_all_other_lines_and_leaves_the_file_as_it_was() -> None:
    hosts, address = add_line(DEBIAN, "db")
    assert (address, hosts.splitlines()[0]) == ("127.0.1.2", "127.0.1.2\tdb\t# vmfork")
    both, second = add_line(hosts, "cache")
    assert second == "127.0.1.3"
    assert drop_line(drop_line(both, "db", address), "cache", second) == DEBIAN


def test_a_line_of_a_client_that_is_gone_makes_room_and_one_of_the_users_own_does_not() -> None:
    left, address = add_line("127.0.1.2 db\n", "db")
    assert address == "127.0.1.3"
    assert add_line(left, "db") == (left, address)
    assert drop_line(left, "db", "127.0.1.4") == left


def test_two_hundred_and_fifty_three_names_are_all_there_are() -> None:
    hosts = DEBIAN
    for number in range(253):
        hosts, _ = add_line(hosts, f"n{number}")
    with pytest.raises(ConfigError, match="no more than 253"):
        add_line(hosts, "one-more")


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_any_file_gets_a_line_and_loses_it_again(hosts: str) -> None:
    changed, address = add_line(hosts, "db")
    assert changed.startswith(f"{address}\tdb\t# vmfork\n")
    dropped = drop_line(changed, "db", address)
    assert add_line(dropped, "db") == (changed, address)


@pytest.mark.parametrize(
    "text", ["db", "Api.Example.ORG.", "a-b.c_d", "xn--bcher-kva.example", "1password.com", "a.b1"]
)
def test_what_is_a_name(text: str) -> None:
    assert check_name(text, field="name") == text.lower().removesuffix(".")


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "-a", "a-", "bücher.example", "a b", "a/b", "a:80", "a\n", "127.0.0.1", "127.1", "0x7f.1",
     "2130706433", "::1", "*.a.b", "a" * 64, "a." * 127 + "ab", "example.0x", "a%2eb", "a\0"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert find_name(text) is None
    with pytest.raises(ConfigError, match="not a name of a host"):
        check_name(text, field="name")


def test_what_was_given_elsewhere_goes_and_nothing_else() -> None:
    one, _ = add_line(DEBIAN, "db")
    both, _ = add_line(one, "cache")
    assert drop_lines(both) == DEBIAN
    assert drop_lines(DEBIAN) == DEBIAN
