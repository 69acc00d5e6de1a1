"""What names an artifact in a registry: HOST[:PORT]/REPOSITORY[:TAG] or @DIGEST (distribution specification 1.1).

Docker Hub's names are read as Docker reads them, but for those without a host: such a word may be a path as well.

```
docker.io/NAME        docker.io/library/NAME, which another host serves
docker.io/TEAM/NAME   so is that
```
"""

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
# Docker Hub as it is called, and by its older name; who speaks to registries' clients there; what a name without a
# team is short for (github.com/distribution/reference, normalize.go).
HUB = "docker.io"
_HUB_NAMES = (HUB, "index.docker.io")
HUB_SERVER = "registry-1.docker.io"
_HUB_TEAM = "library"


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
            raise _refuse(text, "it does not begin with the host of a registry", hint=_hint_for(text))
        named, at, digest = rest.partition("@")
        name, colon, tag = named.partition(":")
        if colon and _TAG.fullmatch(tag) is None:
            raise _refuse(text, f"{tag!r} is no tag")
        if at:
            tag = digest  # which says more than a tag beside it
            if _DIGEST.fullmatch(digest) is None:
                raise _refuse(text, f"{digest!r} is no digest")
        if not _is_port(host.partition(":")[2]):
            raise _refuse(text, f"{host!r} has no port of a registry")
        if _REPOSITORY.fullmatch(name) is None or len(name) > _MOST_NAME:
            raise _refuse(text, f"{name!r} is no repository")
        if host in _HUB_NAMES:
            host, name = HUB, name if "/" in name else f"{_HUB_TEAM}/{name}"
        return cls(host, name, tag or "latest")

    @property
    def is_digest(self) -> bool:
        return ":" in self.version

    @property
    def server(self) -> str:
        """Who is asked: the host, but for Docker Hub."""
        return HUB_SERVER if self.host == HUB else self.host

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this very host: what it is told is seen by nobody on the way."""
        return is_this_host(self.server.partition(":")[0].lower())

    def at(self, version: str) -> Reference:
        """The same repository, another tag or digest."""
        return Reference(self.host, self.repository, version)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.version}"


def is_this_host(name: str) -> bool:
    return name == "localhost" or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None


def _is_port(digits: str) -> bool:
    return not digits or 0 < int(digits) < 1 << 16


def _hint_for(text: str) -> str:
    """What may be meant by a name without a host."""
    if "://" in text:
        return f"{_HINT}, without {text.partition('://')[0]}:// before it"
    try:
        return f"{_HINT}; on Docker Hub it is {Reference.parse(f'{HUB}/{text}')}"
    except ConfigError:
        return _HINT


def _refuse(text: str, reason: str, *, hint: str = _HINT) -> ConfigError:
    return ConfigError("ref", text, f"{text!r} names nothing in a registry: {reason}", hint=hint)
