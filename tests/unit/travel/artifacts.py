"""Artifacts as tests need them: taken apart, changed, and put together again with true digests."""

from __future__ import annotations

import hashlib
import json
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def name_of(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Parts:
    """The documents of an artifact as JSON, and its layers by digest."""

    def __init__(self, path: Path) -> None:
        self.files = read_tar(path)
        self.index = json.loads(self.files["index.json"])
        self.manifest = json.loads(self._blob(self.index["manifests"][0]))
        self.config = json.loads(self._blob(self.manifest["config"]))

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        return self.files[name_of(descriptor["digest"])]

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        self.files[name_of(digest)] = data
        return digest

    def replace_layer(self, number: int, data: bytes, **changes: Any) -> None:
        """Another content in the place of a layer, by its own digest, wherever it is named."""
        where = self.config["state"] if number == len(self.config["memory"]) else self.config["memory"][number]
        where |= {"digest": self.add(data), "size_bytes": len(data), **changes}
        self.manifest["layers"][number] |= {"digest": where["digest"], "size": where["size_bytes"]}

    def write(self, folder: Path) -> Path:
        """A layout of it, its documents named by their digests."""
        config = json.dumps(self.config).encode()
        self.manifest["config"] |= {"digest": self.add(config), "size": len(config)}
        manifest = json.dumps(self.manifest).encode()
        self.index["manifests"][0] |= {"digest": self.add(manifest), "size": len(manifest)}
        self.files["index.json"] = json.dumps(self.index).encode()
        return write_folder(folder, self.files)


def changed(path: Path, folder: Path, change: Callable[[Parts], object]) -> Path:
    """A layout in `folder` of the artifact in `path`, after `change`."""
    parts = Parts(path)
    change(parts)
    return parts.write(folder)
