"""What became of a template that was made ready to be sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The digest that names the artifact, the size in bytes of its layers as they travel, and what of them was sent.

    A registry is not sent what it has.
    """

    digest: str
    size_bytes: int
    sent_bytes: int = 0
