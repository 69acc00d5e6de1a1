"""Frozen values as JSON and back: the one form of every record that another process, or another vmfork, reads.

A field that the reader does not know is left out: a newer vmfork wrote it. A field that is missing takes its default;
without one, or with a value of another type, the record is damaged. A field marked with `VERSION` is compared first. It
is raised when a field is added that a reader must not overlook, or changes its meaning; nothing else raises it. Where
the older form can still be read, `reads_also` marks it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from vmfork.units import Unsaid

T = TypeVar("T")

# Metadata of the field that says in which form a record is written: `format: int = field(default=2, metadata=VERSION)`.
_OLDER = "reads also"
VERSION: Mapping[str, Any] = MappingProxyType({_OLDER: ()})


def reads_also(*older: int) -> Mapping[str, Any]:
    """As `VERSION`, of a field whose `older` values are read as well: what they lack has its default."""
    return MappingProxyType({_OLDER: older})


class OtherVersion(ValueError):
    """The record's `field` is `have`, and this vmfork reads `want`. Nothing else in the record was looked at."""

    def __init__(self, field: str, have: object, want: object) -> None:
        super().__init__(f"{field} is {have!r}, and this vmfork reads {want!r}")
        self.field = field
        self.have = have
        self.want = want


def write_record(value: object, kind: type | None = None, *, indent: int | None = None) -> bytes:
    """The dataclass `value` as JSON. With `kind`, one of its bases, only the fields of that."""
    return json.dumps(list_fields(value, kind), indent=indent, default=_plain).encode()


def list_fields(value: Any, kind: type | None = None) -> dict[str, Any]:
    """The fields of the dataclass `value`, or those of its base `kind`, in their order.

    A number that nobody gave is left out where that is the default, so that it is nobody's when it is read again.
    """
    return {
        field.name: found
        for field in fields(kind or value)
        if not (isinstance(found := getattr(value, field.name), Unsaid) and isinstance(field.default, Unsaid))
    }


def read_record(kind: type[T], data: bytes) -> T:
    """The value of class `kind` in `data`. Raises `OtherVersion`, or `ValueError` that names the field."""
    return build_record(kind, parse_record(kind, data))


def find_value(kind: type[T], data: bytes | None) -> T | None:
    """The value of class `kind` in `data`; `None` where there is no data, or it is damaged or of another version."""
    try:
        return None if data is None else read_record(kind, data)
    except ValueError:
        return None


def parse_record(kind: type, data: bytes) -> dict[str, Any]:
    """The fields in `data`, of the version of `kind`, not looked at further. Raises `OtherVersion` or `ValueError`."""
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the text is wrong, not the program
    _check_version(kind, found, "")
    return found


def build_record(kind: type[T], found: Mapping[str, Any]) -> T:
    """The value of class `kind` with the fields `found`. Raises `OtherVersion` or `ValueError`, as `read_record`."""
    value: T = _read_fields(kind, found, "")
    return value


def _plain(value: object) -> object:
    if is_dataclass(value):
        return list_fields(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{value!r} has no form in JSON")


def _read_value(kind: Any, found: Any, name: str) -> Any:
    if is_dataclass(kind):
        return _read_fields(kind, found, name)
    if (origin := get_origin(kind)) is not None:
        return _read_generic(origin, get_args(kind), found, name)
    if kind is UUID and isinstance(found, str):
        return UUID(found)
    if kind is float and type(found) is int:
        return _read_float(found, name)
    if kind is not Any and type(found) is not kind:
        raise _wrong(name, found)
    return found


def _read_float(found: int, name: str) -> float:
    try:
        return float(found)
    except OverflowError as error:
        raise _wrong(name, found) from error


def _read_generic(origin: Any, inside: tuple[Any, ...], found: Any, name: str) -> Any:
    if origin in (Union, UnionType):
        return None if found is None else _read_value(next(k for k in inside if k is not NoneType), found, name)
    if origin is Literal and found in inside:
        return found
    if origin is tuple and isinstance(found, list):
        return tuple(_read_value(inside[0], each, name) for each in found)
    if origin is Mapping and isinstance(found, dict):
        return {key: _read_value(inside[1], each, f"{name}.{key}") for key, each in found.items()}
    raise _wrong(name, found)


def _wrong(name: str, found: Any) -> ValueError:
    return ValueError(f"{name} is {found!r}")


def _read_fields(kind: Any, found: Any, name: str) -> Any:
    if not isinstance(found, Mapping):
        raise _wrong(name, found)
    _check_version(kind, found, name)
    hints, values = _find_types(kind), {}
    for field in fields(kind):
        inside = _join(name, field.name)
        if field.name in found:
            values[field.name] = _read_value(hints[field.name], found[field.name], inside)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{inside} is missing")
    return kind(**values)


def _check_version(kind: Any, found: Mapping[str, Any], name: str) -> None:
    field = _find_version(kind)
    if field is not None and found.get(field.name) not in (field.default, *field.metadata[_OLDER]):
        raise OtherVersion(_join(name, field.name), found.get(field.name), field.default)


@functools.cache
def _find_version(kind: Any) -> Field[Any] | None:
    return next((field for field in fields(kind) if _OLDER in field.metadata), None)


@functools.cache
def _find_types(kind: type) -> dict[str, Any]:
    # A manifest has 30 fields, each a text to compile: 0.3 ms. A process that forks many times pays it once.
    return get_type_hints(kind)


def _join(name: str, inside: str) -> str:
    return f"{name}.{inside}" if name else inside
