"""A layout that is written, as one tar: content first, as it comes, and at the end the index that makes it one."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from vmfork.oci.descriptor import Descriptor
from vmfork.oci.layout import INDEX
from vmfork.oci.manifest import MANIFEST_TYPE, REF_NAME, write_index

if TYPE_CHECKING:
    from vmfork.oci.manifest import Manifest

_VERSION = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()


class Archive:
    """Writes to `file`, which stays its opener's. The same content in the same order gives the same bytes."""

    takes_several = False

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `finish`
        self._there: set[str] = set()

    def put(self, descriptor: Descriptor, data: bytes) -> None:
        """The content is there. What is there already is not written again."""
        if descriptor.digest not in self._there:
            self._there.add(descriptor.digest)
            self._add(f"blobs/{descriptor.digest.replace(':', '/')}", data)

    def finish(self, manifest: Manifest, *, tag: str) -> Descriptor:
        """It is a layout that holds that manifest, called `tag`. Gives the manifest's descriptor."""
        data = manifest.to_json()
        named = Descriptor.of(data, MANIFEST_TYPE)
        self.put(named, data)
        self._add("oci-layout", _VERSION)
        self._add(INDEX, write_index((replace(named, annotations={REF_NAME: tag}),)))
        self._tar.close()
        return named

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))
