"""What is asked for in one fork, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmfork.adopt.card import Card
from vmfork.adopt.identity import Identity
from vmfork.errors import ConfigError
from vmfork.hypervisor.base import Hardware
from vmfork.machine.card import check_copy, check_has_card
from vmfork.machine.disk import TAKES_DISK, plan_disk
from vmfork.machine.request import ForkRequest
from vmfork.network.policy import Allow
from vmfork.wire.frame import PAYLOAD_LIMIT
from vmfork.wire.message import adopt_request


@pytest.mark.parametrize(
    "env",
    [
        {"BIG": "x" * (128 * 1024 - 4)},
        {"BIG": "é" * (64 * 1024)},
        {f"V{number}": "x" * 100_000 for number in range(3)},
        {f"V{number}": "" for number in range(20_000)},
    ],
    ids=["one", "one-in-bytes", "several", "many"],
)
def test_an_environment_that_is_too_large_is_refused_without_its_values(env) -> None:
    with pytest.raises(ConfigError, match="env") as error:
        ForkRequest(env=env)
    assert "files=" in error.value.hint
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "env",
    [
        {"BIG": "x" * (128 * 1024 - 5)},
        {f"V{number:05}": "" for number in range(7_900)},
        {f"V{number}": "x" * 100_000 for number in range(2)},
    ],
    ids=["one", "many", "several"],
)
def test_one_that_is_not_fits_into_the_request_and_its_answer(env) -> None:
    request = ForkRequest(env=env)
    items = Identity.fresh("0123456789ab", template="t" * 64).items(request.env)
    assert len(adopt_request(1, items)) < PAYLOAD_LIMIT
    answer = sum(len(item) + len("ok") + len(value.partition(b"=")[0]) + 12 for item, value in items)
    assert answer < PAYLOAD_LIMIT


@pytest.mark.parametrize("card", ["", "wide", None, 1, ["open"]])
def test_a_card_leads_to_something_known(card) -> None:
    with pytest.raises(ConfigError, match="card") as error:
        ForkRequest(card=card)
    assert "restricted" in error.value.hint


@pytest.mark.parametrize("card", ["open", "passt"])
@pytest.mark.parametrize("network", ["all", Allow("api.example.org")])
def test_a_card_that_leads_out_is_no_way_past_a_policy(network, card) -> None:
    with pytest.raises(ConfigError, match="past a policy") as error:
        ForkRequest(card=card, network=network)
    assert error.value.hint
    assert ForkRequest(card="restricted", network=network).card == "restricted"


def test_a_copy_with_qemus_own_network_in_its_state_has_no_other() -> None:
    for parent in (None, Card.draw("none"), Card.draw("passt")):
        check_copy("passt", parent, whose="VM 1")
    wired = Card.draw("none", holds_user_network=True)
    check_copy("open", wired, whose="VM 1")
    with pytest.raises(ConfigError, match="VM 1 has QEMU's user network in its device state") as error:
        check_copy("passt", wired, whose="VM 1")
    assert error.value.hint


@pytest.mark.parametrize("card", ["restricted", "open", "passt"])
def test_a_machine_without_a_card_has_none_that_leads_anywhere(card) -> None:
    bare = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
    check_has_card("none", bare, whose="template 't'")
    check_has_card(card, replace(bare, nic=True), whose="template 't'")
    with pytest.raises(ConfigError, match="template 't' has no network card") as error:
        check_has_card(card, bare, whose="template 't'")
    assert "--nic" in error.value.hint


BARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@pytest.mark.parametrize("size", [-1, 1, 7, 1 << 40, 64.0, True, "64M"])
def test_a_size_that_no_disk_has_is_refused(size) -> None:
    with pytest.raises(ConfigError, match="disk"):
        ForkRequest(disk_mib=size)


def test_a_fork_is_given_a_disk_where_it_would_have_none() -> None:
    for asked, have, given in ((None, 0, 0), (None, 64, 0), (0, 0, 0), (64, 64, 0), (64, 0, 64)):
        hardware = replace(BARE, scratch_mib=have)
        assert plan_disk(asked, hardware, {TAKES_DISK}, whose="template 't'") == given


@pytest.mark.parametrize(
    ("asked", "hardware", "capabilities", "said", "hint"),
    [
        (2048, replace(BARE, scratch_mib=64), {TAKES_DISK}, "has a disk of 64 MiB, not of 2 GiB", "--disk 2048"),
        (0, replace(BARE, scratch_mib=64), {TAKES_DISK}, "has a disk of 64 MiB, not none", "without a disk"),
        (64, replace(BARE, machine="microvm"), {TAKES_DISK}, "is a microvm, which takes no disk", "--machine q35"),
        (64, BARE, {"exec", "files"}, "agent of template 't' is older", "build the image"),
    ],
)
def test_a_disk_that_it_cannot_have_is_refused_with_what_to_do(asked, hardware, capabilities, said, hint) -> None:
    with pytest.raises(ConfigError, match="template 't'") as error:
        plan_disk(asked, hardware, capabilities, whose="template 't'")
    assert said in str(error.value)
    assert hint in error.value.hint
