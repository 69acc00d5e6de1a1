"""What a recipe's copies leave out: the file `.vmforkignore` of its folder.

A line is a pattern as `wire/pattern.py` has them. One without a slash is that of a name in whatever folder; any other
counts from the recipe's folder on. With `/` behind it, it is of folders alone; with `!` before it, what it fits is
copied after all. The last line that fits counts. A folder that is left out is not looked into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.wire.pattern import Pattern

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = ".vmforkignore"
_LARGEST = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Line:
    pattern: Pattern
    only_folders: bool
    takes_back: bool


class Ignore:
    """The lines of an ignore file."""

    def __init__(self, lines: tuple[_Line, ...]) -> None:
        self._lines = lines

    @classmethod
    def read(cls, folder: Path) -> Ignore:
        """That of the folder; nothing is left out where there is none. Raises `ConfigError`, which names the line."""
        path = folder / FILE_NAME
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST).decode()
        except FileNotFoundError:
            return cls(())
        except (OSError, ValueError) as error:
            raise ConfigError("copy", str(path), f"cannot read {path}: {error}") from error
        lines = [line.strip() for line in text.splitlines()]
        return cls(tuple(_read(line, path) for line in lines if line and not line.startswith("#")))

    def leaves_out(self, path: str, is_folder: bool) -> bool:
        """Whether what is at `path`, from the recipe's folder on, is not copied."""
        last = next((line for line in reversed(self._lines) if _fits(line, path, is_folder=is_folder)), None)
        return last is not None and not last.takes_back


def _fits(line: _Line, path: str, *, is_folder: bool) -> bool:
    return (is_folder or not line.only_folders) and line.pattern.matches(path)


def _read(line: str, path: Path) -> _Line:
    text = line.removeprefix("!")
    rooted, bare = text.startswith("/"), text.strip("/")
    # A pattern with a slash is rooted; a name with one before it as well, which `Pattern` would take for any folder's.
    pattern = Pattern(bare, field=str(path)) if not rooted or "/" in bare else _Rooted(bare, field=str(path))
    return _Line(pattern, only_folders=text.endswith("/"), takes_back=line.startswith("!"))


class _Rooted(Pattern):
    """A name in the recipe's folder itself."""

    def matches(self, path: str) -> bool:
        return "/" not in path and super().matches(path)
