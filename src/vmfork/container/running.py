"""What an image says of itself: for which machine it is, its layers, and how programs run (config.md of the OCI)."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field
from typing import Any

_MOST_TEXT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How an image's programs run; empty where the image says nothing.

    `user` is a name or number, of a group too behind a colon.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """`diff_ids` are the digests of the layers' tars, from the lowest up."""

    arch: str
    system: str
    diff_ids: tuple[str, ...]
    running: Running


def read_configuration(data: bytes) -> Configuration:
    """Raises `ValueError` that says what is wrong."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    rootfs = body.get("rootfs") if isinstance(body, dict) else None
    if not isinstance(rootfs, dict):
        raise ValueError("it says nothing of layers (rootfs)")  # noqa: TRY004 - the text is wrong, not the program
    how = body.get("config") or {}
    if not isinstance(how, dict):
        raise ValueError("what it says of programs (config) is no object")  # noqa: TRY004 - as above
    return Configuration(
        arch=str(body.get("architecture", "")),
        system=str(body.get("os", "")),
        diff_ids=_texts(rootfs, "diff_ids"),
        running=_read_running(how),
    )


def _read_running(how: dict[str, Any]) -> Running:
    variables = (line.partition("=") for line in _texts(how, "Env"))
    return Running(
        env={name: value for name, equals, value in variables if name and equals},
        cwd=_text(how, "WorkingDir"),
        user=_text(how, "User"),
        entrypoint=_texts(how, "Entrypoint"),
        command=_texts(how, "Cmd"),
    )


def _texts(body: dict[str, Any], key: str) -> tuple[str, ...]:
    found = body.get(key) or []
    if not isinstance(found, list):
        raise ValueError(f"{key} is no list")  # noqa: TRY004 - the text is wrong, not the program
    return tuple(_check_text(key, each) for each in found)


def _text(body: dict[str, Any], key: str) -> str:
    return _check_text(key, body.get(key) or "")


def _check_text(key: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > _MOST_TEXT:
        raise ValueError(f"{key} has {str(value)[:100]!r}, which is no text for a program")
    return value
