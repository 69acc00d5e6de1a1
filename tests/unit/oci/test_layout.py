"""Layouts as others make them are read; what is no layout, or not the content of its digest, is refused by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.errors import ArtifactError
from vmfork.host import zstd
from vmfork.oci.archive import Archive
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.layout import Layout
from vmfork.oci.manifest import Manifest, read_index, write_index

DATA = b"content" * 1000
BLOB = Descriptor.of(DATA, "text/plain")
CONFIG = Descriptor.of(b"{}", "application/vnd.test.v1+json")


@pytest.fixture
def archive(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        writer = Archive(file)
        writer.put(BLOB, DATA)
        writer.put(BLOB, DATA)
        writer.put(CONFIG, b"{}")
        writer.finish(Manifest(config=CONFIG, layers=(BLOB,), artifact_type="application/x"), tag="one")
    return tmp_path / "a.tar"


def test_what_was_written_is_read(archive) -> None:
    with Layout.open(archive) as layout:
        (named,) = layout.read_index()
        manifest = Manifest.from_json(layout.read(named))
        assert (manifest.kind, manifest.layers) == ("application/x", (BLOB,))
        assert layout.read(BLOB) == DATA
    with tarfile.open(archive) as tar:
        assert len({*tar.getnames()}) == len(tar.getnames()) == 5


def test_the_order_of_a_tar_and_a_dot_before_its_names_do_not_matter(archive, tmp_path) -> None:
    with tarfile.open(archive) as tar, tarfile.open(tmp_path / "b.tar", "w") as other:
        for member in reversed(tar.getmembers()):
            content = tar.extractfile(member)
            member.name = f"./{member.name}"
            other.addfile(member, content)
    with Layout.open(tmp_path / "b.tar") as layout:
        assert layout.read(BLOB) == DATA
        assert len(layout.read_index()) == 1


@given(st.binary(max_size=3000))
def test_garbage_is_no_layout(data) -> None:
    # The path is not of the test's folder, which hypothesis would share between its examples.
    fd = os.memfd_create("garbage")
    try:
        os.write(fd, data)
        with pytest.raises(ArtifactError), Layout.open(Path(f"/proc/self/fd/{fd}")) as layout:
            layout.read_index()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("pack", "program"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz"), (zstd.compress, "unzstd")],
)
def test_a_tar_that_was_compressed_is_told_with_what_undoes_that(archive, tmp_path, pack, program) -> None:
    """As `docker save app | gzip` makes one."""
    packed = tmp_path / "packed.tar"
    packed.write_bytes(pack(archive.read_bytes()))
    with pytest.raises(ArtifactError, match="it is compressed") as told:
        Layout.open(packed)
    assert told.value.hint == f"undo that first: {program} {packed}"
    packed.write_bytes(b"no tar at all")
    with pytest.raises(ArtifactError, match="it is not a tar"):
        Layout.open(packed)


def test_a_name_of_thousands_of_headers_is_refused(tmp_path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    (tmp_path / "long.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 5000)
    with pytest.raises(ArtifactError, match="it is not a tar"):
        Layout.open(tmp_path / "long.tar")


def test_links_and_devices_of_a_tar_are_not_content(tmp_path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        for name, kind in (("index.json", tarfile.SYMTYPE), ("oci-layout", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    with Layout.open(tmp_path / "links.tar") as layout, pytest.raises(ArtifactError, match=r"index\.json"):
        layout.read_index()


def test_a_folder_in_which_a_link_leads_elsewhere_is_refused(tmp_path) -> None:
    (tmp_path / "secret").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "index.json").symlink_to(tmp_path / "secret")
    with Layout.open(tmp_path / "layout") as layout, pytest.raises(ArtifactError, match="not a regular file"):
        layout.read_index()


def test_what_is_neither_file_nor_folder_keeps_nobody_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="neither"):
        Layout.open(tmp_path / "pipe")


def test_a_blob_that_is_other_longer_or_missing_is_told_by_its_name(archive, tmp_path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    path = tmp_path / "layout" / "blobs" / BLOB.digest.replace(":", "/")
    with Layout.open(tmp_path / "layout") as layout:
        for data, said in ((DATA[:-1], "bytes"), (DATA + b"x", "bytes"), (b"x" * len(DATA), "digest")):
            path.write_bytes(data)
            with pytest.raises(ArtifactError, match=said) as error:
                layout.read(BLOB)
            assert BLOB.digest.removeprefix("sha256:") in error.value.source
        path.unlink()
        with pytest.raises(ArtifactError, match="missing"):
            layout.read(BLOB)


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"mediaType": 5, "digest": BLOB.digest, "size": 1},
        {"mediaType": "a", "digest": "sha256:../../etc/passwd", "size": 1},
        {"mediaType": "a", "digest": f"sha512:{'0' * 128}", "size": 1},
        {"mediaType": "a", "digest": BLOB.digest.upper(), "size": 1},
        {"mediaType": "a", "digest": BLOB.digest, "size": -1},
        {"mediaType": "a", "digest": BLOB.digest, "size": True},
        {"mediaType": "a", "digest": BLOB.digest, "size": 1.5},
        {"mediaType": "a", "digest": BLOB.digest},
    ],
)
def test_what_is_no_descriptor_is_refused(found) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        Descriptor.from_json(found)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"schemaVersion": 1}', b'{"schemaVersion": 2}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_manifest_or_index_is_refused(data) -> None:
    for read in (Manifest.from_json, read_index):
        with pytest.raises(ValueError, match="it"):
            read(data)


def test_documents_come_back() -> None:
    manifest = Manifest(config=CONFIG, layers=(BLOB, CONFIG), artifact_type="application/x", annotations={"a": "b"})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert read_index(write_index((BLOB,))) == (BLOB,)
