"""What became of a template that was made ready to be sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The digest that names the artifact, and the size in bytes of its layers as they travel."""

    digest: str
    size_bytes: int
