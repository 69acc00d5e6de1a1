"""What artifacts of any kind have in common: documents that are read and checked, and layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from vmfork.errors import ArtifactError, ConfigError
from vmfork.host.zstd import compress, decompress
from vmfork.oci.descriptor import Descriptor, digest_of
from vmfork.oci.layout import MOST_DOCUMENT, Layout
from vmfork.oci.manifest import MANIFEST_TYPE, Manifest
from vmfork.records import OtherVersion, read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FORMAT = re.compile(r"(.*)\.v(\d+)")


class Blobs(Protocol):
    """Where content is read from by its digest. Raises `ArtifactError` when it is missing or other."""

    def read(self, descriptor: Descriptor, /) -> bytes: ...


class Sink(Protocol):
    """Where content goes. What is there already may be left out.

    One that `takes_several` is put to by several threads at once; others by one, in the order of what they hold.
    """

    @property
    def takes_several(self) -> bool: ...

    def put(self, descriptor: Descriptor, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer, and how many bytes it has when it is not compressed."""

    digest: str
    size_bytes: int
    raw_bytes: int

    def describe(self, media_type: str) -> Descriptor:
        return Descriptor(media_type=media_type, digest=self.digest, size_bytes=self.size_bytes)


class Described(Protocol):
    """A configuration, which names the layers of its manifest."""

    def check(self, layers: Sequence[Descriptor], /) -> None:
        """Raises `ValueError` or `ConfigError` when it is none that we make, or `layers` are not its own."""


D = TypeVar("D", bound=Described)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of artifact: what it is one `of`, the type of its manifest, and the class of its configuration."""

    of: str
    media_type: str

    def open(self, path: Path) -> Layout:
        """The layout at `path`. Raises `ConfigError` where nothing is, and `ArtifactError`."""
        try:
            return Layout.open(path)
        except FileNotFoundError as error:
            hint = f"give what `vmfork {self.of} save` wrote"
            raise ConfigError("file", str(path), f"nothing is at {path}", hint=hint) from error

    def read_layout(self, configuration: type[D], layout: Layout) -> D:
        """The one artifact in the layout. Raises `ArtifactError`."""
        named = [each for each in layout.read_index() if each.media_type == MANIFEST_TYPE]
        if len(named) != 1:
            reason = f"it holds {len(named)} manifests, where one of {_ARTICLES[self.of]} {self.of} belongs"
            raise ArtifactError(str(layout.path), reason)
        return self.read(configuration, layout.read(named[0]), layout, source=str(layout.path))

    def read(self, configuration: type[D], manifest: bytes, blobs: Blobs, *, source: str) -> D:
        """The configuration of the artifact with that manifest, checked in itself.

        Raises `ArtifactError`, in which `source` names it.
        """
        try:
            found = Manifest.from_json(manifest)
        except ValueError as error:
            raise ArtifactError(source, f"its manifest makes no sense: {error}") from error
        self._check_type(found.kind, source)
        if found.config.size_bytes > MOST_DOCUMENT:
            raise ArtifactError(source, f"its configuration has {found.config.size_bytes} bytes, more than any")
        data = blobs.read(found.config)
        try:
            artifact = read_record(configuration, data)
        except OtherVersion as error:
            reason = f"its {error.field} is {error.have!r}, and this vmfork reads {error.want!r}"
            raise _made_by_another(source, reason) from error
        except ValueError as error:
            raise ArtifactError(source, f"its configuration makes no sense: {error}") from error
        try:
            artifact.check(found.layers)
        except (ValueError, ConfigError) as error:
            raise ArtifactError(source, str(error)) from error
        return artifact

    def _check_type(self, found: str, source: str) -> None:
        if found == self.media_type:
            return
        theirs, ours = _FORMAT.fullmatch(found), _FORMAT.fullmatch(self.media_type)
        if theirs and ours and theirs[1] == ours[1]:
            what = f"it is {_ARTICLES[self.of]} {self.of} of format {theirs[2]}"
            raise _made_by_another(source, f"{what}, and this vmfork reads format {ours[2]}")
        hint = f"{self.of}s are what `vmfork {self.of} save` makes"
        raise ArtifactError(source, f"it is {found}, and no {self.of}", hint=hint)


_ARTICLES = {"template": "a", "image": "an"}


def check_layers(own: Sequence[Descriptor], named: Sequence[Descriptor]) -> None:
    """Raises `ValueError` when a configuration has other layers than its manifest, or in another order."""
    ours, theirs = ([(each.media_type, each.digest, each.size_bytes) for each in layers] for layers in (own, named))
    if ours != theirs:
        raise ValueError("its configuration names other layers, or in another order")


def count_bytes(layers: Sequence[Descriptor]) -> int:
    """Of all these layers as they travel, each counted once."""
    return sum({each.digest: each.size_bytes for each in layers}.values())


def most_packed(raw_bytes: int) -> int:
    """zstd makes nothing larger than this (ZSTD_compressBound, zstd.h)."""
    return raw_bytes + raw_bytes // 128 + 1024


def make_layer(raw: bytes | memoryview) -> tuple[Layer, bytes]:
    """The layer of that content, and what it is as it travels."""
    data = compress(raw)
    return Layer(digest=digest_of(data), size_bytes=len(data), raw_bytes=len(raw)), data


def fetch_layer(layer: Layer, media_type: str, blobs: Blobs, source: str) -> bytes:
    """The content of the layer, compared with its digest before it was looked at. Raises `ArtifactError`."""
    data = blobs.read(layer.describe(media_type))
    try:
        return decompress(data, layer.raw_bytes)
    except ValueError as error:
        raise ArtifactError(f"{source}: layer {layer.digest}", str(error)) from error


def _made_by_another(source: str, reason: str) -> ArtifactError:
    return ArtifactError(source, reason, hint="read it with the vmfork that made it, or save it with this one")
