"""Images of the Open Container Initiative, written by hand: layers as tars, and a layout around them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmfork.host import zstd
from vmfork.late import import_late
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_KINDS = {
    "file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE,
}  # fmt: skip
PACKINGS: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
    "": ("", bytes),
    "gzip": ("+gzip", lambda data: gzip.compress(data, 1, mtime=0)),
    "zstd": ("+zstd", zstd.compress),
}


@dataclass(frozen=True)
class Member:
    """One member of a layer. `target` is that of a link of either kind."""

    name: str
    kind: str = "file"
    body: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_600_000_000
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()


def folder(name: str, mode: int = 0o755, **more: Any) -> Member:
    return Member(name, "dir", mode=mode, **more)


def link(name: str, target: str) -> Member:
    return Member(name, "link", target=target, mode=0o777)


def hard(name: str, target: str) -> Member:
    return Member(name, "hard", target=target)


def make_layer(members: Iterable[Member]) -> bytes:
    """The tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.mode, info.uid, info.gid = _KINDS[member.kind], member.mode, member.uid, member.gid
            info.mtime, info.linkname, info.size = member.mtime, member.target, len(member.body)
            info.devmajor, info.devminor = member.device
            info.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in member.xattrs
            }
            tar.addfile(info, io.BytesIO(member.body))
    return file.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class LayoutWriter:
    """Writes blobs into a layout at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))

    def put(self, data: bytes, kind: str) -> dict[str, Any]:
        """The blob is there; its descriptor."""
        name = digest(data)
        (self.path / "blobs" / name.replace(":", "/")).write_bytes(data)
        return {"mediaType": kind, "digest": name, "size": len(data)}

    def put_json(self, body: object, kind: str) -> dict[str, Any]:
        return self.put(json.dumps(body).encode(), kind)

    def add_image(
        self,
        layers: Iterable[bytes],
        *,
        tag: str = "latest",
        packing: str = "gzip",
        config: Mapping[str, Any] | None = None,
        arch: str = "amd64",
        layer_type: str = LAYER_TYPE,
        diff_ids: list[str] | None = None,
    ) -> dict[str, Any]:
        """An image of these tars; the descriptor of its manifest, which the index has too. `config` is how it runs."""
        suffix, pack = PACKINGS[packing]
        layers = list(layers)
        body = {
            "architecture": arch,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.put_json(body, CONFIG_TYPE),
            "layers": [self.put(pack(layer), layer_type + suffix) for layer in layers],
        }
        named = self.put_json(manifest, MANIFEST_TYPE)
        self.manifests.append({**named, "annotations": {"org.opencontainers.image.ref.name": tag}})
        self.finish()
        return named

    def finish(self) -> None:
        """The index names what was added."""
        body = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(body))


def write_image(path: Path, layers: Iterable[Iterable[Member]], **more: Any) -> Path:
    """`path` is a layout with one image."""
    LayoutWriter(path).add_image([make_layer(members) for members in layers], **more)
    return path


def put_image(layout: LayoutWriter, reference: str, **how: Any) -> dict[str, Any]:
    """The last image of the layout is in a registry; its manifest."""
    blobs, named = layout.path / "blobs", layout.manifests[-1]
    manifest = (blobs / named["digest"].replace(":", "/")).read_bytes()
    body: dict[str, Any] = json.loads(manifest)
    with import_late("vmfork.oci.registry", "Repository")(Reference.parse(reference), **how) as repository:
        for each in (body["config"], *body["layers"]):
            repository.put(Descriptor.from_json(each), (blobs / each["digest"].replace(":", "/")).read_bytes())
        repository.put_manifest(Reference.parse(reference).version, manifest)
    return body


def save_archive(path: Path, members: Iterable[Iterable[Member]]) -> None:
    """`path` is what `docker save app:1` writes of an image of these layers."""
    layers = {f"{number}/layer.tar": make_layer(each) for number, each in enumerate(members)}
    rootfs = {"diff_ids": [digest(layer) for layer in layers.values()]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    listed = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": [*layers]}]
    parts = {**layers, "c.json": json.dumps(config).encode(), "manifest.json": json.dumps(listed).encode()}
    with tarfile.open(path, "w") as tar:
        for name, body in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


# Of busybox, what the images of tests call by name.
APPLETS = ("sh", "cat", "echo", "env", "id", "ls", "mkdir", "pwd", "setsid", "sleep", "sort", "stat", "test", "wc")


def box_members(busybox: Path, *users: str) -> list[Member]:
    """A layer like those of the image `busybox`: one static program under many names, and /etc/passwd."""
    passwd = "\n".join(["root:x:0:0::/root:/bin/sh", *users, ""]).encode()
    return [
        folder("bin"),
        Member("bin/busybox", body=busybox.read_bytes(), mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        folder("etc"),
        Member("etc/passwd", body=passwd),
    ]


def make_by_umoci(umoci: str, path: Path, layers: Iterable[Path], options: Iterable[str] = ()) -> Path:
    """`path` is a layout with one image of these tars, `latest`, made by umoci; `options` are those of its config."""

    def run(*argv: str) -> None:
        subprocess.run([umoci, *argv], check=True, capture_output=True)

    run("init", "--layout", str(path))
    run("new", "--image", f"{path}:latest")
    for layer in layers:
        run("raw", "add-layer", "--image", f"{path}:latest", str(layer))
    run("config", "--image", f"{path}:latest", "--architecture", "amd64", "--os", "linux", *options)
    return path
