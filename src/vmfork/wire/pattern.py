"""Patterns of names, as a shell has them."""

from __future__ import annotations

import fnmatch
import re

from vmfork.errors import ConfigError

_ANY_FOLDERS = "**"


class Pattern:
    """`*`, `?` and `[...]` stand for parts of one name, `**` for any number of folders.

    A pattern without a slash is that of a name, in whatever folder. Raises `ConfigError` for what is no pattern.
    """

    def __init__(self, text: str, *, field: str) -> None:
        self._check(text, field)
        self._is_of_name = "/" not in text and text != _ANY_FOLDERS
        self._parts = [None if part == _ANY_FOLDERS else _compile(part) for part in text.split("/")]

    @staticmethod
    def _check(text: str, field: str) -> None:
        parts = text.split("/")
        reason = ""
        if not text or "\0" in text:
            reason = "is empty, or has NUL in it"
        elif any(part in ("", ".", "..") for part in parts):
            reason = "must be a path from the folder on, without '.', '..' and empty names"
        elif any(_ANY_FOLDERS in part and part != _ANY_FOLDERS for part in parts):
            reason = "has '**' beside other characters of a name"
        elif any(_is_open(part) for part in parts):
            reason = "has a '[' without its ']'"
        if reason:
            raise ConfigError(field, text, f"{text!r} {reason}", hint="such as '*.py', or 'src/**/*.py'")

    @property
    def needs_tree(self) -> bool:
        """Only what lies in folders below can match."""
        return not self._is_of_name

    def matches(self, path: str) -> bool:
        """Whether it is that of `path`, from the folder on."""
        names = path.split("/")
        if self._is_of_name:
            return _fits(self._parts[0], names[-1])
        # How many of the names the parts so far stand for: a set, so that many `**` cost no more than a few.
        reached = {0}
        for part in self._parts:
            if part is None:
                reached = set(range(min(reached), len(names) + 1)) if reached else set()
            else:
                reached = {at + 1 for at in reached if at < len(names) and _fits(part, names[at])}
        return len(names) in reached


def _compile(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))


def _fits(part: re.Pattern[str] | None, name: str) -> bool:
    return part is None or part.match(name) is not None


def _is_open(part: str) -> bool:
    """Whether a `[` has no `]`; the first character behind it is one of the set, even where that is `]`."""
    at = 0
    while (start := part.find("[", at)) >= 0:
        first = start + 2 if part[start + 1 : start + 2] == "!" else start + 1
        end = part.find("]", first + 1)
        if end < 0:
            return True
        at = end + 1
    return False
