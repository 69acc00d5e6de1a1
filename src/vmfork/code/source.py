"""Code that is to be run, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from vmfork.code.frame import MOST_REQUEST
from vmfork.errors import ConfigError
from vmfork.hint import suggest
from vmfork.wire.given import check_path

LANGUAGES = ("python", "bash", "sh", "javascript")


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Code to be run: in which language, in which interpreter of it, and where to look for files that it makes.

    Raises `ConfigError` for a language that is not known, and for code that is no text, or too much.
    """

    source: str
    language: str = "python"
    context: str = ""
    restart: bool = False
    made_in: str = ""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            hint = f"{suggest(self.language, LANGUAGES)}give one of {', '.join(LANGUAGES)}"
            raise ConfigError("language", self.language, f"{self.language!r} is not known", hint=hint)
        for name, value in (("code", self.source), ("context", self.context)):
            _check_text(name, value)
        if self.made_in:
            check_path(self.made_in, field="made_in")


def _check_text(name: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        hint = "read it with its own encoding"
        raise ConfigError(name, value, f"it cannot be written as UTF-8: {error}", hint=hint) from error
    if size > MOST_REQUEST // 2:
        raise ConfigError(name, value[:60], f"it has {size} bytes", hint="put it into a file, and run that")


def find_code(text: str) -> Code | None:
    """The code below a first line such as `#!python`; `None` for a script of a program, `#!/bin/sh`, and any other."""
    head, _, source = text.partition("\n")
    language = head.removeprefix("#!").strip()
    return Code(source=source, language=language) if head.startswith("#!") and "/" not in language else None
