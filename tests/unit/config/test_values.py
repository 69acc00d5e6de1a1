"""Every limit that a message names can be reached, and is the last that can."""

from __future__ import annotations

import re

import pytest

from vmfork.config import FactoryConfig, VMConfig, check_name
from vmfork.config.values import MAX_CPUS, MAX_MEMORY_MIB, NAME_LIMIT
from vmfork.errors import ConfigError
from vmfork.template.audit import audit_template
from vmfork.units import MAX_DURATION_S, parse_duration_s
from vmfork.wire.command import Command

SPANS = [
    (VMConfig, "cpus", 1, MAX_CPUS, {}),
    (VMConfig, "memory_mib", 64, 1 << 32, {}),
    (VMConfig, "max_cpus", 0, MAX_CPUS, {}),
    (VMConfig, "max_memory_mib", 0, MAX_MEMORY_MIB, {"memory_mib": 512}),
    (FactoryConfig, "cache", 0, 65_535, {}),
    (FactoryConfig, "budget_mib", 0, 1 << 32, {}),
]


@pytest.mark.parametrize(("kind", "field", "low", "high", "others"), SPANS, ids=lambda value: str(value)[-16:])
def test_a_number_may_be_as_small_and_as_large_as_its_hint_says(kind, field, low, high, others) -> None:
    for value in (low, high):
        assert getattr(kind(**{**others, field: value}), field) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigError, match=f"{value} is out of range") as caught:
            kind(**{**others, field: value})
        assert str(caught.value.hint) == f"give {low} to {high}"


def test_a_name_may_have_as_many_characters_as_its_message_says() -> None:
    longest = "x" * NAME_LIMIT
    assert check_name(longest) == longest
    with pytest.raises(ConfigError, match=f"at most {NAME_LIMIT} characters, this one {NAME_LIMIT + 1}"):
        check_name(longest + "x")


def test_a_duration_may_be_as_long_as_its_hint_says() -> None:
    assert parse_duration_s(f"{MAX_DURATION_S:.0f}") == MAX_DURATION_S
    with pytest.raises(ConfigError, match="too long") as caught:
        parse_duration_s(f"{MAX_DURATION_S + 1:.0f}")
    assert re.sub(r"\D", "", str(caught.value.hint)) == f"{MAX_DURATION_S:.0f}"


def test_a_command_needs_one_word() -> None:
    assert Command(["true"]).argv == ("true",)
    with pytest.raises(ConfigError, match="at least the name of a program"):
        Command([])


async def test_an_audit_needs_two_forks() -> None:
    class Forked(Exception):
        pass

    async def fork_many(count: int) -> list:
        raise Forked

    class Named:
        name = "web"

    with pytest.raises(Forked):
        await audit_template(Named(), fork_many, 2)
    with pytest.raises(ConfigError, match="an audit compares forks") as caught:
        await audit_template(Named(), fork_many, 1)
    assert str(caught.value.hint) == "give 2 or more"
