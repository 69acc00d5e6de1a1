"""What names a piece of content: its kind, its digest, its size (OCI image specification 1.1, descriptor.md)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """`digest` is `sha256:` and 64 hex digits, the only kind that is taken; `size_bytes` that of the content."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Descriptor:
        return cls(media_type=media_type, digest=digest_of(data), size_bytes=len(data))

    @classmethod
    def from_json(cls, found: object) -> Descriptor:
        """Raises `ValueError` that says what is wrong."""
        if not isinstance(found, dict):
            raise ValueError(f"{found!r} is no descriptor")  # noqa: TRY004 - the text is wrong, not the program
        kind, digest, size = found.get("mediaType"), found.get("digest"), found.get("size")
        if not isinstance(kind, str):
            raise ValueError(f"a descriptor's mediaType is {kind!r}")  # noqa: TRY004 - as above
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise ValueError(f"a descriptor's digest is {digest!r}, where sha256 and 64 hex digits belong")
        if type(size) is not int or size < 0:
            raise ValueError(f"a descriptor's size is {size!r}")
        return cls(media_type=kind, digest=digest, size_bytes=size, annotations=read_annotations(found))

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        return body | ({"annotations": dict(self.annotations)} if self.annotations else {})


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_annotations(found: Mapping[str, Any]) -> dict[str, str]:
    """Those that are text."""
    given = found.get("annotations")
    return {k: v for k, v in given.items() if isinstance(v, str)} if isinstance(given, dict) else {}
