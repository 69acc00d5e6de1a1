"""An empty image is what QEMU's own tools take for one, and what names other files is found out."""

from __future__ import annotations

import json
import os
import struct
import subprocess

import pytest

from vmfork.hypervisor.qemu.qcow2 import check_plain, format_of, write_empty

# Where each field stands (docs/interop/qcow2.txt), and how it is packed.
FIELDS = {
    "backing": (8, ">Q"),
    "bits": (20, ">I"),
    "size": (24, ">Q"),
    "encryption": (32, ">I"),
    "snapshots": (60, ">I"),
    "needed": (72, ">Q"),
}


@pytest.fixture
def image():
    fd = os.memfd_create("image")
    yield fd
    os.close(fd)


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("size_mib", [8, 512, 513, 2048, 16 * 1024 * 1024])
def test_it_is_empty_and_whole_for_qemu(tmp_path, size_mib) -> None:
    path = tmp_path / "image"
    with path.open("w+b") as file:
        write_empty(file.fileno(), size_mib)
        check_plain(file.fileno(), size_mib)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(path)]))
    assert (told["format"], told["virtual-size"], told.get("backing-filename")) == ("qcow2", size_mib << 20, None)
    checked = json.loads(subprocess.check_output(["qemu-img", "check", "--output=json", str(path)]))
    assert not {"corruptions", "leaks", "check-errors"} & {key for key, value in checked.items() if value}
    mapped = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", str(path)]))
    assert [each["data"] for each in mapped] == [False]


def test_an_image_of_ours_and_no_other_is_plain(image) -> None:
    write_empty(image, 64)
    check_plain(image, 64)
    for name, (place, how) in FIELDS.items():
        before = os.pread(image, struct.calcsize(how), place)
        os.pwrite(image, struct.pack(how, 1), place)
        with pytest.raises(ValueError, match="it "):
            check_plain(image, 64)
        os.pwrite(image, before, place)
        check_plain(image, 64), name
    for size_mib in (63, 65):
        with pytest.raises(ValueError, match="a disk of"):
            check_plain(image, size_mib)


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", bytes(4096), b"QFI\xfb" + bytes(4096)])
def test_what_is_no_image_is_refused(image, content) -> None:
    os.pwrite(image, content, 0)
    with pytest.raises(ValueError, match="no qcow2"):
        check_plain(image, 64)


def test_a_format_is_known_by_how_a_file_begins(image) -> None:
    assert format_of(image) == "raw"
    os.ftruncate(image, 1 << 20)
    assert format_of(image) == "raw"
    write_empty(image, 64)
    assert format_of(image) == "qcow2"
