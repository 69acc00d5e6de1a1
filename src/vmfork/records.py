"""Frozen values as JSON and back: one spelling for each record that another process, or a later vmfork, reads.

A field that the reader does not know is left out: a newer vmfork wrote it. A field that is missing takes its default;
without one, or with a value of another type, the record is damaged. What needs the same vmfork on both sides has a
version among its fields, which is compared before the rest is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

T = TypeVar("T")


def write_record(value: object) -> bytes:
    """The dataclass `value` as JSON."""
    return json.dumps(value, default=_plain).encode()


def read_record(kind: type[T], data: bytes) -> T:
    """The value of class `kind` in `data`. Raises `ValueError`, saying what is wrong with which field."""
    value: T = _read_value(kind, json.loads(data), "")
    return value


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
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
        return float(found)
    if kind is not Any and type(found) is not kind:
        raise _wrong(name, found)
    return found


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
    if not isinstance(found, dict):
        raise ValueError(f"{name or 'it'} is {found!r}")  # noqa: TRY004 - the text is wrong, not the program
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):
        inside = f"{name}.{field.name}" if name else field.name
        if field.name in found:
            values[field.name] = _read_value(hints[field.name], found[field.name], inside)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{inside} is missing")
    return kind(**values)
