"""What the agent calls a failure."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """What an ERROR calls a failure, as `docs/reference/wire.md` lists it. A newer agent may have others."""

    PROTOCOL = "protocol"
    UNSUPPORTED = "unsupported"
    INVALID = "invalid"
    NOT_FOUND = "not-found"
    NOT_EXECUTABLE = "not-executable"
    NO_DIRECTORY = "no-directory"
    NO_USER = "no-user"
    DENIED = "denied"
    EXISTS = "exists"
    IS_DIRECTORY = "is-directory"
    NOT_DIRECTORY = "not-directory"
    NOT_EMPTY = "not-empty"
    NO_SPACE = "no-space"
    TOO_LONG = "too-long"
    BUSY = "busy"
    REFUSED = "refused"
    RESET = "reset"
    CANCELLED = "cancelled"
    IO = "io"
