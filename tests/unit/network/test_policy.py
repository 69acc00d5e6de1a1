"""What a policy lets a machine reach: by name, by address, by what a name leads to."""

from __future__ import annotations

import pickle
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.errors import ConfigError
from vmfork.network.floor import explain_floor, find_kind, unwrap
from vmfork.network.policy import Allow, check_policy, judge_address, judge_host

LIST = Allow(
    "api.example.org", "*.example.com:8443", "10.1.0.7:5432", "192.168.4.0/24:22", "[2001:db8::1]:80", "8.8.8.0/24"
)
ADDRESSES = st.ip_addresses()


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("api.example.org", 80, True),
        ("api.example.org", 443, True),
        ("api.example.org", 22, False),
        ("example.org", 443, False),
        ("evil-api.example.org", 443, False),
        ("api.example.org.evil.net", 443, False),
        ("a.example.com", 8443, True),
        ("a.b.example.com", 8443, True),
        ("example.com", 8443, False),
        ("aexample.com", 8443, False),
        ("a.example.com", 443, False),
        ("10.1.0.7", 5432, True),
        ("10.1.0.7", 80, False),
        ("10.1.0.8", 5432, False),
        ("::ffff:10.1.0.7", 5432, True),
        ("192.168.4.200", 22, True),
        ("192.168.5.1", 22, False),
        ("2001:db8::1", 80, True),
        ("8.8.8.8", 443, True),
        ("8.8.4.4", 443, False),
        ("169.254.169.254", 80, False),
    ],
)
def test_what_a_list_names(host: str, port: int, allowed: bool) -> None:
    verdict = judge_host(LIST, host, port)
    assert (verdict.allowed, bool(verdict.why)) == (allowed, True)


def test_why_is_said_by_the_entry_or_what_it_lacks() -> None:
    assert judge_host(LIST, "a.example.com", 8443).why == "*.example.com:8443"
    assert judge_host(LIST, "a.example.com", 80).why == "port 80 of a.example.com is not in the list, which has 8443"
    assert judge_host(LIST, "b.example.org", 80).why == "b.example.org is not in the list"
    assert (
        judge_host(LIST, "127.0.0.1", 80).why == "127.0.0.1 is the host's loopback: name the address itself to allow it"
    )
    assert judge_host("all", "example.org", 25) == (True, "network is all")
    assert judge_host("none", "example.org", 80) == (False, "network is none")


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "169.254.169.254", "169.254.1.1", "fe80::1",
     "fd00:ec2::254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fec0::1",
     "100.64.0.1", "100.100.100.200", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "192.0.2.1",
     "198.18.0.1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "::127.0.0.1", "2001:0:1::1", "64:ff9b:1::1"],
)  # fmt: skip
@pytest.mark.parametrize("policy", ["all", Allow("*.example.org", "0.0.0.0/0", "::/0"), Allow(log_only=True)])
def test_an_address_that_is_not_of_the_internet_is_refused_by_every_policy(text: str, policy) -> None:
    assert not judge_address(policy, ip_address(text), 80).allowed
    assert not judge_host(policy, text, 80).allowed
    assert explain_floor(ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_an_address_of_the_internet_is_not(text: str) -> None:
    assert judge_address("all", ip_address(text), 80).allowed


def test_a_name_that_leads_to_an_address_needs_that_address_too_and_its_port() -> None:
    policy = Allow("db.example.org:5432", "127.0.0.1:5432", "10.0.0.0/8:5432")
    for text in ("127.0.0.1", "::ffff:127.0.0.1", "10.9.9.9"):
        assert judge_address(policy, ip_address(text), 5432).allowed
        assert not judge_address(policy, ip_address(text), 80).allowed
    assert not judge_address(policy, ip_address("127.0.0.2"), 5432).allowed


@given(ADDRESSES)
def test_python_agrees_that_what_it_calls_not_global_is_refused(address: IPv4Address | IPv6Address) -> None:
    inner = unwrap(address)
    if not find_kind(inner):
        assert (inner.is_global, inner.is_multicast) == (True, False)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::ffff:0:0", "64:ff9b::"]))
def test_an_address_in_another_is_judged_as_itself(number: int, carrier: str) -> None:
    inner = IPv4Address(number)
    assert unwrap(IPv6Address(int(IPv6Address(carrier)) + number)) == inner
    assert unwrap(IPv6Address((0x2002 << 112) + (number << 80) + 7)) == inner


@given(st.text(max_size=40), st.integers(-1, 70_000))
def test_any_text_is_an_entry_or_refused_by_name(text: str, port: int) -> None:
    for entry in (text, f"{text}:{port}"):
        with suppress(ConfigError):
            assert Allow(entry).entries == (entry.strip(),)


@given(st.text(max_size=40), st.integers(1, 65_535))
def test_a_list_of_one_name_lets_nothing_else_through(host: str, port: int) -> None:
    assert judge_host(Allow("only.example.org:1"), host, port).allowed == (host == "only.example.org" and port == 1)


@pytest.mark.parametrize(
    "entry",
    ["", " ", "*", "*.com", "*.", "*.*.example.com", "a.*.b", "a*.example.com", "*.co.uk", "*.1.2.3", "http://x",
     "https://a.b/", "a.b/c", "user@a.b", "a.b:", "a.b:0", "a.b:65536", "a.b:http", "a.b:-1", "a.b:80:80", ":80",
     "[::1", "[1.2.3.4]", "::g", "10.0.0.1/8", "10.0.0.0/33", "127.1", "0x7f000001", "a b", "bücher.example",
     "a..b", "fe80::1%eth0", None, 80, b"a.b"],
)  # fmt: skip
def test_what_is_no_entry(entry) -> None:
    with pytest.raises(ConfigError) as told:
        Allow("fine.example.org", entry)
    assert (told.value.field, "api.example.org" in told.value.hint) == ("network", True)


def test_a_list_is_a_value_and_an_empty_one_is_none() -> None:
    assert Allow("a.b:80") == Allow(" a.b:80") != Allow("a.b:81")
    assert pickle.loads(pickle.dumps(LIST)) == LIST
    assert repr(Allow("a.b:80")) == "Allow(entries=('a.b:80',), log_only=False)"
    with pytest.raises(ConfigError, match="allows nothing") as told:
        Allow()
    assert 'network="none"' in told.value.hint
    for wrong in (None, "", "some", ["a.b"], True, Allow):
        with pytest.raises(ConfigError, match="no policy for a network"):
            check_policy(wrong)
    assert [check_policy(each) for each in ("none", "all", LIST)] == ["none", "all", LIST]


def test_a_list_that_only_logs_lets_names_through_and_says_so() -> None:
    learning = Allow("api.example.org", log_only=True)
    assert judge_host(learning, "other.example.net", 443) == (True, "other.example.net is not in the list")
    assert judge_host(learning, "api.example.org", 443) == (True, "api.example.org")
    assert not judge_host(learning, "127.0.0.1", 443).allowed
