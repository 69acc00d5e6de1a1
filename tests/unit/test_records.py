"""Frozen values survive the way through JSON, a newer writer is understood, and a damaged record is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from hypothesis import given

from tests.json_values import damaged, values
from vmfork.records import VERSION, OtherVersion, read_record, reads_also, write_record


@dataclass(frozen=True)
class Inner:
    uuid: UUID
    words: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    whatever: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: int
    seconds: float
    maybe: Inner | None = None
    name: str = field(default_factory=lambda: "made")
    yes: bool = False
    either: Literal["one", "two"] = "one"


VALUE = Outer(Inner(uuid4(), ("a", "b"), {"c": 1}, {"d": [None, 2.5]}), 3, 0.5, Inner(uuid4()), "n", True)


@pytest.mark.parametrize("value", [VALUE, Outer(Inner(uuid4()), 0, 1.0)])
def test_a_value_comes_back_as_it_was(value) -> None:
    assert read_record(Outer, write_record(value)) == value


def changed(**values: object) -> bytes:
    return json.dumps({**json.loads(write_record(VALUE)), **values}).encode()


def test_what_a_newer_writer_added_is_left_out() -> None:
    inner = {**json.loads(write_record(VALUE.inner)), "later": [1]}
    assert read_record(Outer, changed(later={"a": 1}, inner=inner)) == VALUE


def test_what_an_older_writer_did_not_know_takes_its_default() -> None:
    data = {key: value for key, value in json.loads(changed()).items() if key in ("inner", "count", "seconds")}
    assert read_record(Outer, json.dumps(data).encode()) == Outer(VALUE.inner, 3, 0.5)


def test_a_whole_number_is_a_number_of_seconds() -> None:
    assert read_record(Outer, changed(seconds=2)).seconds == 2.0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"count": "3"}, "count"),
        ({"count": True}, "count"),
        ({"count": None}, "count"),
        ({"yes": 1}, "yes"),
        ({"inner": []}, "inner"),
        ({"inner": {}}, r"inner\.uuid is missing"),
        ({"inner": {"uuid": "x"}}, "badly formed"),
        ({"inner": {"uuid": str(uuid4()), "words": "ab"}}, r"inner\.words"),
        ({"inner": {"uuid": str(uuid4()), "words": [1]}}, r"inner\.words"),
        ({"inner": {"uuid": str(uuid4()), "counts": {"a": "b"}}}, r"inner\.counts\.a is 'b'"),
        ({"inner": {"uuid": str(uuid4()), "counts": [1]}}, r"inner\.counts"),
        ({"maybe": 7}, "maybe"),
        ({"either": "three"}, "either is 'three'"),
    ],
)
def test_a_damaged_field_is_named(values, named) -> None:
    with pytest.raises(ValueError, match=named):
        read_record(Outer, changed(**values))


@dataclass(frozen=True)
class Versioned:
    count: int
    format: int = field(default=2, metadata=VERSION)


@dataclass(frozen=True)
class Holder:
    inner: Versioned


@pytest.mark.parametrize("have", [1, 3, "2", None])
def test_another_version_is_told_before_anything_else_is_looked_at(have) -> None:
    for kind, data, name in (
        (Versioned, {"count": "nonsense", "format": have}, "format"),
        (Holder, {"inner": {"format": have}}, "inner.format"),
    ):
        with pytest.raises(OtherVersion) as caught:
            read_record(kind, json.dumps(data).encode())
        assert (caught.value.field, caught.value.have, caught.value.want) == (name, have, 2)


def test_a_record_without_its_version_is_of_another() -> None:
    with pytest.raises(OtherVersion):
        read_record(Versioned, b'{"count": 1}')


def test_only_the_fields_of_a_base_are_written_where_that_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Known(Versioned):
        path: object = None

    known = Known(7, path=object())
    assert read_record(Versioned, write_record(known, Versioned)) == Versioned(7)


@pytest.mark.parametrize("data", [b"[" * 1_000_000, b'{"a":' * 1_000_000])
def test_what_is_nested_too_deeply_is_refused(data) -> None:
    with pytest.raises(ValueError, match="too deeply"):
        read_record(Outer, data)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"{}"])
def test_what_is_no_record_is_refused(data) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own words, or ours
        read_record(Outer, data)


def test_what_has_no_form_in_json_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError):
        write_record(Outer(object(), 1, 1.0))  # type: ignore[arg-type]


def is_value_or_told(data: bytes) -> bool:
    try:
        return isinstance(read_record(Outer, data), Outer)
    except ValueError as error:
        return bool(str(error))


@given(data=damaged(write_record(VALUE)))
def test_a_damaged_record_is_a_value_or_told_and_nothing_else(data) -> None:
    assert is_value_or_told(data)


@given(found=values)
def test_any_json_is_a_record_or_told(found) -> None:
    assert is_value_or_told(json.dumps(found).encode())


def test_a_whole_number_that_fits_into_no_float_is_told() -> None:
    with pytest.raises(ValueError, match="seconds is 1000"):
        read_record(Outer, changed(seconds=10**400))


@dataclass(frozen=True)
class Renewed:
    count: int = 7
    format: int = field(default=3, metadata=reads_also(1, 2))


def test_a_form_that_can_still_be_read_is_and_no_other() -> None:
    for older in (1, 2, 3):
        assert read_record(Renewed, b'{"format": %d}' % older) == Renewed(format=older)
    for other in (b'{"format": 4}', b'{"format": 0}', b'{"format": "2"}', b"{}"):
        with pytest.raises(OtherVersion, match="this vmfork reads 3"):
            read_record(Renewed, other)
