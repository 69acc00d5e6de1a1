"""What names an artifact in a registry: HOST[:PORT]/REPOSITORY[:TAG] or @DIGEST (distribution specification 1.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmfork.errors import ConfigError

_HINT = "give one such as registry.example/team/py:1"
_HOST = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|localhost|[A-Za-z0-9.-]+(?=:\d))(?::\d{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Of a repository's name (distribution specification, "Pull").
_MOST_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """`version` is a tag or a digest."""

    host: str
    repository: str
    version: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `ConfigError` for what names nothing in a registry. Without a tag it is `latest`."""
        host, slash, rest = text.partition("/")
        if not slash or text.startswith((".", "/")) or _HOST.fullmatch(host) is None:
            raise _refuse(text, "it does not begin with the host of a registry")
        name, at, digest = rest.partition("@")
        if at:
            tag = digest
            if _DIGEST.fullmatch(digest) is None:
                raise _refuse(text, f"{digest!r} is no digest")
        else:
            name, colon, tag = name.partition(":")
            if colon and _TAG.fullmatch(tag) is None:
                raise _refuse(text, f"{tag!r} is no tag")
        if _REPOSITORY.fullmatch(name) is None or len(name) > _MOST_NAME:
            raise _refuse(text, f"{name!r} is no repository")
        return cls(host, name, tag or "latest")

    @property
    def is_digest(self) -> bool:
        return ":" in self.version

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this very host: what it is told is seen by nobody on the way."""
        name = self.host.partition(":")[0]
        return name == "localhost" or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None

    def at(self, version: str) -> Reference:
        """The same repository, another tag or digest."""
        return Reference(self.host, self.repository, version)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.version}"


def _refuse(text: str, reason: str) -> ConfigError:
    return ConfigError("ref", text, f"{text!r} names nothing in a registry: {reason}", hint=_HINT)
