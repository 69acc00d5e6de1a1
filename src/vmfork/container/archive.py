"""What `docker save` wrote: a tar whose manifest.json names configurations and layers, by paths in the tar."""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError, ConfigError
from vmfork.oci.descriptor import digest_of
from vmfork.oci.layout import MOST_DOCUMENT, Part, find_members

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmfork.oci.layout import Place


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image in an open archive. `layers` are paths in the tar, from the lowest up."""

    fd: int
    name: str
    places: Mapping[str, Place]
    configuration: bytes
    layers: tuple[str, ...]

    @property
    def digest(self) -> str:
        """That of its configuration, which names the content of all layers."""
        return digest_of(self.configuration)

    @contextmanager
    def opened(self, layer: str) -> Iterator[Part]:
        yield _find_part(self.fd, self.places, layer, self.name)


@contextmanager
def open_archive(path: Path, tag: str) -> Iterator[SavedImage]:
    """The image of that tag; without one, there is one alone. Raises `ConfigError` where there is no archive."""
    name = str(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("source", name, f"cannot open {path}: {why}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ArtifactError(name, "it is no file")
        # Of a layer that an image has twice, Docker before 25 writes a link in its second place.
        places = find_members(path, fd, with_links=True)
        config, layers = _read_list(_read_document(fd, places, "manifest.json", name), tag, name)
        yield SavedImage(fd, name, places, _read_document(fd, places, config, name), tuple(layers))
    finally:
        os.close(fd)


def _find_part(fd: int, places: Mapping[str, Place], member: str, name: str) -> Part:
    if member not in places:
        raise ArtifactError(name, f"it has no {member!r}", hint="give what `docker save` wrote")
    return Part(fd, places[member].offset, places[member].size)


def _read_document(fd: int, places: Mapping[str, Place], member: str, name: str) -> bytes:
    data = _find_part(fd, places, member, name).read(MOST_DOCUMENT + 1)
    if len(data) > MOST_DOCUMENT:
        raise ArtifactError(name, f"its {member} has more than {MOST_DOCUMENT} bytes")
    return data


def _read_list(data: bytes, tag: str, name: str) -> tuple[str, list[str]]:
    """The paths of the configuration and of the layers."""
    try:
        images = [
            (
                str(each["Config"]),
                [str(layer) for layer in each["Layers"]],
                [str(t) for t in each.get("RepoTags") or ()],
            )
            for each in json.loads(data)
        ]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ArtifactError(name, f"its manifest.json makes no sense: {error}") from error
    wanted = [(config, layers) for config, layers, tags in images if not tag or _is_tagged(tags, tag)]
    if len(wanted) != 1:
        raise ArtifactError(name, f"{len(wanted)} of its {len(images)} images fit", hint="give a tag that one has")
    return wanted[0]


def _is_tagged(tags: list[str], tag: str) -> bool:
    return any(each == tag or each.rpartition(":")[2] == tag for each in tags)
