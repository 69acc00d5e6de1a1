"""Sizes and durations as people write them."""

from __future__ import annotations

import re

from vmfork.errors import ConfigError

MIB = 1024 * 1024
# No time limit is longer: 31 years. What counts seconds in the guest, or in the system, would overflow beyond.
MAX_DURATION_S = 1_000_000_000

_SIZE = re.compile(r"(\d{1,18})\s*(?:([KMGT])(?:i?B)?)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", re.IGNORECASE)
_MIB_PER = {"M": 1, "G": 1024, "T": 1024 * 1024}
_SECONDS_PER = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


# A size as people give it: see `parse_size_mib`.
Size = int | str


class Unsaid(int):
    """A number that nobody gave: a default, which what is found out later may raise."""


def parse_size_mib(text: Size, *, field: str = "size") -> int:
    """Whole MiB in `text`: `256M`, `1G`, `1GiB`, or a bare number of MiB. Raises `ConfigError` for anything else."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ConfigError(field, text, f"{text!r} is not a size", hint="write 256M, 1G, or a number of MiB")
    number, unit = int(match[1]), (match[2] or "M").upper()
    if unit == "K":
        if number % 1024:
            raise ConfigError(field, text, f"{text!r} is not a whole number of MiB", hint="write 256M")
        return number // 1024
    return number * _MIB_PER[unit]


def parse_duration_s(text: str | float, *, field: str = "duration") -> float:
    """Seconds in `text`: `30`, `1.5s`, `200ms`, `5m`, `1h`. Raises `ConfigError` for anything else."""
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ConfigError(field, text, f"{text!r} is not a duration", hint="write 30, 1.5s, 200ms, 5m or 1h")
    seconds = float(match[1]) * _SECONDS_PER[(match[2] or "s").lower()]
    if seconds > MAX_DURATION_S:
        raise ConfigError(field, text, f"{text!r} is too long", hint=f"give {MAX_DURATION_S:,} seconds at most")
    return seconds


def parse_seconds(value: object, *, field: str) -> float:
    """A time limit: a duration as text, or a number of seconds. Raises `ConfigError` for any other, and for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(field, value, "must be a duration, or a number of seconds")
    seconds = parse_duration_s(value, field=field) if isinstance(value, str) else value
    if not 0 < seconds <= MAX_DURATION_S:
        raise ConfigError(field, value, f"{value!r} is not a positive number of seconds")
    return float(seconds)


def format_mib(mib: float) -> str:
    """`mib` for people, with at most one decimal: `256 MiB`, `1.5 GiB`, `1022980 MiB`."""
    number, unit = (mib / 1024, "GiB") if mib >= 1024 and mib % 512 == 0 else (mib, "MiB")
    return f"{number:.1f}".removesuffix(".0") + f" {unit}"


def format_count(count: int, noun: str) -> str:
    """`1 program`, `2 programs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_bytes(count: float) -> str:
    """`count` bytes for people, with one decimal from KiB up."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_duration(seconds: float) -> str:
    """`seconds` for people: `4.2 ms`, `1.3 s`, `2 min 5 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
