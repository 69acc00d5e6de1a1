"""What code in a guest gave."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vmfork.code.frame import read_json
from vmfork.errors import CodeError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

_BINARY = ("image/png", "image/jpeg", "application/pdf")
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class CodeOutput:
    """Something that code has shown: by `display`, as a figure, or as its last expression.

    `data` has it by media type: bytes for images, what JSON holds for `application/json`, else text.
    """

    data: Mapping[str, Any]

    @property
    def text(self) -> str:
        """As a prompt shows it."""
        return str(self.data.get("text/plain", ""))

    @property
    def html(self) -> str | None:
        """As HTML, where it has that form."""
        return self.data.get("text/html")

    @property
    def svg(self) -> str | None:
        """As a drawing, where it has that form."""
        return self.data.get("image/svg+xml")

    @property
    def png(self) -> bytes | None:
        """As a picture, where it has that form."""
        return self.data.get("image/png")

    @property
    def json(self) -> Any:
        """As JSON has it, where it has that form."""
        return self.data.get("application/json")


@dataclass(frozen=True, slots=True)
class CodeFailure:
    """How code failed: the name of what it raised, its message, and the traceback as the language prints it.

    `InterpreterEnded` where the code has ended its interpreter, `ExitStatus` for a shell, and `NotInstalled` where the
    machine has no interpreter of that language.
    """

    type: str
    message: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CodeResult:
    """The end of one piece of code.

    `value` is the `repr` of its last expression, where it ends with one; of a shell its exit status. `results` is what
    it has shown, that expression included, in order. `error` is how it failed, and `files` what it has made, by their
    paths. `is_state_lost`: its interpreter has ended, and the next call begins a new one.
    """

    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    results: tuple[CodeOutput, ...] = ()
    error: CodeFailure | None = None
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    is_state_lost: bool = False
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return self.error is None

    def check(self) -> CodeResult:
        """This result. Raises `CodeError`, with what the code wrote, when it failed."""
        if self.error is None:
            return self
        raise CodeError(
            self.error.type, self.error.message, self.error.traceback, stdout=self.stdout, stderr=self.stderr
        )

    def __repr__(self) -> str:
        told = (("value", self.value), ("error", self.error), ("stdout", self.stdout), ("stderr", self.stderr))
        shown = ", ".join(f"{name}={_short(found)}" for name, found in told if found)
        return f"CodeResult({shown})"


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def parse_output(payload: bytes) -> CodeOutput:
    """What was shown. Raises `ProtocolError` for what no interpreter sends."""
    return CodeOutput({name: _read_content(name, found) for name, found in read_json(payload, dict).items()})


def _read_content(media_type: str, found: object) -> object:
    if media_type == "application/json":
        return found
    if not isinstance(found, str):
        raise ProtocolError(f"an interpreter in the guest has shown {media_type[:60]!r} that is no text")
    if media_type not in _BINARY:
        return found
    try:
        return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"an interpreter in the guest has shown {media_type!r} that is no base64") from error


@dataclass(frozen=True, slots=True)
class Done:
    """How a call has ended."""

    value: str | None
    error: CodeFailure | None
    is_lost: bool


def parse_done(payload: bytes) -> Done:
    """How the call has ended. Raises `ProtocolError` for what no interpreter sends."""
    found = read_json(payload, dict)
    value, error = found.get("value"), found.get("error")
    if not (value is None or isinstance(value, str)) or not (error is None or isinstance(error, dict)):
        raise ProtocolError("an interpreter in the guest did not say how its code has ended")
    return Done(value, None if error is None else _read_failure(error), found.get("is_lost") is True)


def _read_failure(found: Mapping[str, object]) -> CodeFailure:
    parts = [found.get(name, "") for name in ("type", "message", "traceback")]
    if not all(isinstance(part, str) for part in parts):
        raise ProtocolError("an interpreter in the guest did not say how its code has failed")
    return CodeFailure(*map(str, parts))


def parse_names(payload: bytes, *, most: int) -> list[str]:
    """Paths from a folder on, each below it. Raises `ProtocolError` for what no server sends."""
    names = read_json(payload, list)
    if len(names) > most or not all(isinstance(name, str) and _is_below(name) for name in names):
        raise ProtocolError("an interpreter in the guest named files that cannot be")
    return list(dict.fromkeys(names))


def _is_below(name: str) -> bool:
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
