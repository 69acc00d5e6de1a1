"""Where an image comes from: a layout, an archive of Docker's, a registry, or a folder.

```
oci:PATH[:TAG]             an OCI layout: a folder, or a tar of one
docker-archive:FILE[:TAG]  what `docker save` wrote
dir:FOLDER                 a root file system as it lies there
docker-daemon:NAME:TAG     what Docker's daemon has, or podman and buildah: fetched by skopeo (skopeo.py)
containers-storage:NAME
HOST[:PORT]/NAME[:TAG]     in a registry; or NAME@sha256:...
```
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vmfork.config.source import LOCAL_KINDS, TOOL_KINDS
from vmfork.errors import ArtifactError, ConfigError
from vmfork.oci.layout import MOST_DOCUMENT
from vmfork.oci.manifest import INDEX_TYPE, MANIFEST_TYPE, REF_NAME, Manifest, read_index
from vmfork.oci.reference import Reference

if TYPE_CHECKING:
    from vmfork.oci.descriptor import Descriptor
    from vmfork.oci.layout import Layout

ARCH, SYSTEM = "amd64", "linux"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = (MANIFEST_TYPE, DOCKER_MANIFEST)
INDEXES = (INDEX_TYPE, DOCKER_LIST)
CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+(gzip|zstd))?"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar(\.(gzip|zstd))?)"
)
REGISTRY = "registry"
_LOCAL = "oci:FOLDER[:TAG], docker-archive:FILE, dir:FOLDER"
_HINT = f"give {_LOCAL}, or a name in a registry, such as registry.example/py:1"
_MOST_NESTED = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """`kind` is one of the above, or `REGISTRY`. `place` is a path or a reference."""

    kind: str
    place: str
    tag: str = ""

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Raises `ConfigError` for what is none of the forms."""
        if not isinstance(text, str) or not text or "\0" in text:
            raise ConfigError("source", text, f"{text!r} says nowhere an image could come from", hint=_HINT)
        kind, colon, rest = text.partition(":")
        if colon and kind in LOCAL_KINDS:
            if not rest:
                raise ConfigError("source", text, f"{text!r} has no path", hint=_HINT)
            place, tag = (rest, "") if kind == "dir" else _split_tag(rest)
            return cls(kind, place, tag)
        if colon and kind in TOOL_KINDS:
            if not rest:
                raise ConfigError("source", text, f"{text!r} names no image", hint=f"such as {kind}:app:1")
            return cls(kind, rest)
        if text.startswith((".", "/", "~")):
            raise ConfigError("source", text, f"{text!r} is a path, and does not say of what", hint=_HINT)
        try:
            Reference.parse(text)
        except ConfigError as error:
            raise ConfigError("source", text, error.reason, hint=f"{error.hint}; or {_LOCAL}") from None
        return cls(REGISTRY, text)


def _split_tag(rest: str) -> tuple[str, str]:
    """The path, which may have colons where it is there, and the tag, which may be a whole name."""
    if os.path.lexists(rest):
        return rest, ""
    path, colon, tag = rest.rpartition(":")
    there, more = path, colon
    while more and not os.path.lexists(there):
        there, more, _ = there.rpartition(":")
    if more:
        return there, rest[len(there) + 1 :]
    return (path, tag) if colon and "/" not in tag else (rest, "")


class Blobs(Protocol):
    """Content by its descriptor."""

    def read(self, descriptor: Descriptor) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a layout or a registry."""

    name: str
    digest: str
    manifest: Manifest


def choose_image(blobs: Blobs, descriptor: Descriptor, name: str, *, depth: int = 0) -> Found:
    """The image that the descriptor leads to, by way of indexes the one for this architecture.

    Raises `ArtifactError` when there is none, or when it is of a kind that is not known.
    """
    data = blobs.read(descriptor) if descriptor.size_bytes <= MOST_DOCUMENT else b""
    return choose_document(blobs, data, descriptor.digest, descriptor.media_type, name, depth=depth)


def choose_document(blobs: Blobs, data: bytes, digest: str, media_type: str, name: str, *, depth: int = 0) -> Found:
    """The same, of a document that was read."""
    try:
        if media_type not in INDEXES:
            return Found(name, digest, _read_manifest(data, media_type))
        chosen = _choose_platform(data)
    except ValueError as error:
        raise ArtifactError(name, str(error), hint="give an image for linux/amd64 of tar layers") from error
    if depth >= _MOST_NESTED:
        raise ArtifactError(name, "its indexes lead to indexes and to no image")
    return choose_image(blobs, chosen, name, depth=depth + 1)


def _read_manifest(data: bytes, media_type: str) -> Manifest:
    """Raises `ValueError` for what is no image, or has layers of a kind that is not known."""
    if media_type not in MANIFESTS:
        raise ValueError(f"it is of the kind {media_type!r}, which is no image")
    manifest = Manifest.from_json(data)
    if manifest.config.media_type not in CONFIGS:
        raise ValueError(f"it is no image, but {manifest.kind!r}")
    if manifest.config.size_bytes > MOST_DOCUMENT:
        raise ValueError(f"its configuration has {manifest.config.size_bytes} bytes, more than any")
    for layer in manifest.layers:
        if _LAYER.fullmatch(layer.media_type) is None:
            raise ValueError(f"its layer is of the kind {layer.media_type!r}, which is not known")
    return manifest


def _choose_platform(index: bytes) -> Descriptor:
    """The first for this architecture; one that says nothing of it counts where no other does."""
    described = list(zip(read_index(index), _read_platforms(index), strict=True))
    for wanted in ({"os": SYSTEM, "architecture": ARCH}, {}):
        for descriptor, platform in described:
            has = {key: platform.get(key) for key in ("os", "architecture")} if platform else {}
            if has == wanted:
                return descriptor
    there = sorted({f"{each.get('os')}/{each.get('architecture')}" for _, each in described if each})
    raise ValueError(f"it has no image for {SYSTEM}/{ARCH}: it has {', '.join(there) or 'none'}")


def _read_platforms(index: bytes) -> list[dict[str, Any]]:
    """What an index, which was read, says of each of its manifests; nothing where it says what is no platform."""
    given = [each.get("platform") for each in json.loads(index)["manifests"]]
    return [each if isinstance(each, dict) else {} for each in given]


def find_in_layout(layout: Layout, tag: str) -> Found:
    """The image of that tag; without one, there is one alone. Raises `ArtifactError`."""
    manifests = layout.read_index()
    tags = [each.annotations.get(REF_NAME, "") for each in manifests]
    matching = [each for each, its in zip(manifests, tags, strict=True) if not tag or its == tag]
    told = f"it has {', '.join(filter(None, tags)) or 'none with a name'}"
    if not matching:
        what = f"no image is called {tag!r}" if tag else "no image is in it"
        raise ArtifactError(str(layout.path), f"{what}: {told}", hint="give one of its tags: oci:PATH:TAG")
    if len(matching) > 1 and not tag:
        raise ArtifactError(str(layout.path), f"which image is not said: {told}", hint="give its tag: oci:PATH:TAG")
    return choose_image(layout, matching[0], f"{layout.path}:{tag}" if tag else str(layout.path))
