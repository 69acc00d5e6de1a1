"""The record reads back as it was written, and a wrong one is refused by field."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.image.samples import make_image
from vmfork.image.record import decode_record, encode_record


def test_a_record_reads_back(tmp_path):
    image = make_image(tmp_path)
    assert decode_record(encode_record(image), name=image.name, folder=image.kernel.parent) == image


def test_a_record_from_before_modules_were_named_has_none(tmp_path):
    image = replace(make_image(tmp_path), boot_modules=("virtio_mmio",))
    text = encode_record(image)
    assert decode_record(text, name="one", folder=tmp_path).boot_modules == ("virtio_mmio",)
    old = {key: value for key, value in json.loads(text).items() if key != "boot_modules"}
    assert decode_record(json.dumps(old).encode(), name="one", folder=tmp_path).boot_modules == ()


def test_what_a_newer_vmfork_adds_is_left_out(tmp_path):
    image = make_image(tmp_path)
    newer = json.dumps({**json.loads(encode_record(image)), "colour": "green"}).encode()
    assert decode_record(newer, name=image.name, folder=image.kernel.parent) == image


def test_only_what_the_record_is_of_is_in_it(tmp_path):
    image = replace(make_image(tmp_path), min_memory_mib=232)
    assert {"name", "kernel", "initramfs", "min_memory_mib"} & json.loads(encode_record(image)).keys() == set()


def test_a_record_from_before_disks_is_read(tmp_path):
    image = make_image(tmp_path)
    later = ("root", "disk_sha256", "disk_bytes", "init", "source", "environment")
    old = {key: value for key, value in json.loads(encode_record(image)).items() if key not in later}
    found = decode_record(json.dumps({**old, "format": 4}).encode(), name="one", folder=tmp_path)
    assert (found.digest, found.disk_sha256, found.init) == (image.digest, "", "")


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({"format": 3}, "format is 3, and this vmfork reads 5"),
        ({"format": 6}, "format is 6, and this vmfork reads 5"),
        ({"digest": None}, "digest"),
        ({"kernel_bytes": "7"}, "kernel_bytes"),
        ({"kernel_bytes": True}, "kernel_bytes"),
        ({"packages": []}, "packages"),
        ({"boot_modules": "virtio_mmio"}, "boot_modules"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path, change, want):
    fields = json.loads(encode_record(make_image(tmp_path))) | change
    with pytest.raises(ValueError, match=want):
        decode_record(json.dumps(fields).encode(), name="x", folder=tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_record_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"image\.json: not "):
        decode_record(text, name="x", folder=tmp_path)
