"""What a program wrote, as text."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from vmfork.errors import ConfigError, GuestError

# Is called with each piece of output: bytes, or text where an encoding was asked for.
OutputListener: TypeAlias = Callable[[Any], object]

REMEDY = "give errors='replace', or leave the encoding out and take the bytes"


@dataclass(frozen=True, slots=True)
class Decoding:
    """How bytes become text, by Python's names. Raises `ConfigError` for an encoding or a handler that is none."""

    encoding: str = "utf-8"
    errors: str = "replace"

    def __post_init__(self) -> None:
        try:
            codecs.getincrementaldecoder(self.encoding)
            b"a".decode(self.encoding, "ignore")  # some are no encodings of text, such as hex
        except (LookupError, ValueError, TypeError) as error:
            hint = "give one of Python's: utf-8, latin-1, utf-16, ..."
            raise ConfigError(
                "encoding", self.encoding, f"no encoding is named {self.encoding!r}", hint=hint
            ) from error
        try:
            b"\xff".decode("ascii", self.errors)
        except UnicodeDecodeError:
            return
        except (LookupError, ValueError, TypeError) as error:
            reason = f"{self.errors!r} is no way to treat bytes that are no text"
            raise ConfigError("errors", self.errors, reason, hint="give strict, replace or backslashreplace") from error

    def decode(self, data: bytes) -> str:
        """The text. Raises `UnicodeError` where the handler is a strict one."""
        return data.decode(self.encoding, self.errors)

    def decoder(self, of: str) -> Decoder:
        """For the pieces of one stream, which `of` names in an error."""
        return Decoder(self, of)


# As most programs write, and never an error.
PLAIN = Decoding()


class Decoder:
    """Text from the pieces of one stream: a character that is cut in two comes with the second."""

    def __init__(self, how: Decoding, of: str) -> None:
        self._how = how
        self._of = of
        self._decoder = codecs.getincrementaldecoder(how.encoding)(how.errors)

    def decode(self, data: bytes, *, is_last: bool = False) -> str:
        """The text of the next piece. Raises `GuestError` for bytes that a strict handler refuses."""
        try:
            return self._decoder.decode(data, is_last)
        except UnicodeError as error:
            raise GuestError(f"{self._of} is not {self._how.encoding}: {error}", hint=REMEDY) from error


def find_decoding(encoding: str | None, errors: str | None) -> Decoding | None:
    """As it was asked for; `None` where nobody asked for text."""
    if encoding is None and errors is None:
        return None
    return Decoding("utf-8" if encoding is None else encoding, "strict" if errors is None else errors)
