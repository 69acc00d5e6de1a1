"""What to do about an error, in the words of whoever reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that may have been meant, as the beginning of a hint; empty where none is like it."""
    names = [*known]
    if not names:
        return ""
    import difflib  # noqa: PLC0415 - 16 ms, for mistakes alone

    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {nearest[0]}? " if nearest else ""


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
