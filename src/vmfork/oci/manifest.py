"""The two documents that hold a layout together: a manifest (of one image or artifact), and an index (of manifests)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmfork.oci.descriptor import Descriptor, read_annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
# The name of what a descriptor of an index points at: a tag.
REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image, or an artifact: then `artifact_type` says of what kind."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What it is a manifest of: the type of the artifact, else that of its configuration (manifest.md)."""
        return self.artifact_type or self.config.media_type

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises `ValueError` that says what is wrong."""
        body = _read_object(data)
        layers = body.get("layers")
        if not isinstance(layers, list):
            raise ValueError("it has no list of layers")  # noqa: TRY004 - the text is wrong, not the program
        kind = body.get("artifactType", "")
        return cls(
            config=Descriptor.from_json(body.get("config")),
            layers=tuple(map(Descriptor.from_json, layers)),
            artifact_type=kind if isinstance(kind, str) else "",
            annotations=read_annotations(body),
        )

    def to_json(self) -> bytes:
        """The same bytes for the same manifest."""
        body: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE}
        if self.artifact_type:
            body["artifactType"] = self.artifact_type
        body |= {"config": self.config.to_json(), "layers": [each.to_json() for each in self.layers]}
        return _write(body | ({"annotations": dict(self.annotations)} if self.annotations else {}))


def read_index(data: bytes) -> tuple[Descriptor, ...]:
    """The manifests that an index names. Raises `ValueError` that says what is wrong."""
    manifests = _read_object(data).get("manifests")
    if not isinstance(manifests, list):
        raise ValueError("it has no list of manifests")  # noqa: TRY004 - the text is wrong, not the program
    return tuple(map(Descriptor.from_json, manifests))


def write_index(manifests: tuple[Descriptor, ...]) -> bytes:
    body = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [each.to_json() for each in manifests]}
    return _write(body)


def _write(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("schemaVersion") != 2:
        raise ValueError("it is not of schemaVersion 2")
    return body
