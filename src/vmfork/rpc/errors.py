"""Errors that only clients of a cache server meet."""

from __future__ import annotations

from vmfork.errors import HostError


class OtherKind(HostError):
    """The server gives machines of another kind than it did: ask it what they are."""
