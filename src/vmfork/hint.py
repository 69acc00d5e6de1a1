"""What to do about an error, in the words of whoever reads it."""

from __future__ import annotations

from typing import Any, Self


class Hint(str):
    """What to do, in the words of a Python program. `command` says it in those of the command line."""

    __slots__ = ("command",)
    command: str

    def __new__(cls, text: str, command: str = "") -> Self:
        hint = super().__new__(cls, text)
        hint.command = command or text
        return hint

    def __reduce__(self) -> tuple[Any, ...]:
        return Hint, (str(self), self.command)
