"""The record reads back as it was written, and a wrong one is refused by field."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.image.samples import make_image
from vmfork.image.record import RecordError, decode_record, encode_record


def test_a_record_reads_back(tmp_path):
    image = make_image(tmp_path)
    assert decode_record(encode_record(image), name=image.name, folder=image.kernel.parent) == image


def test_a_record_from_before_modules_were_named_has_none(tmp_path):
    image = replace(make_image(tmp_path), boot_modules=("virtio_mmio",))
    text = encode_record(image)
    assert decode_record(text, name="one", folder=tmp_path).boot_modules == ("virtio_mmio",)
    old = {key: value for key, value in json.loads(text).items() if key != "boot_modules"}
    assert decode_record(json.dumps(old).encode(), name="one", folder=tmp_path).boot_modules == ()


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({"format": 1}, "format 1"),
        ({"digest": None}, "digest"),
        ({"kernel_bytes": "7"}, "kernel_bytes"),
        ({"kernel_bytes": True}, "kernel_bytes"),
        ({"packages": []}, "packages"),
        ({"boot_modules": "virtio_mmio"}, "boot_modules"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path, change, want):
    fields = json.loads(encode_record(make_image(tmp_path))) | change
    with pytest.raises(RecordError, match=want):
        decode_record(json.dumps(fields).encode(), name="x", folder=tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_record_is_refused(tmp_path, text):
    with pytest.raises(RecordError):
        decode_record(text, name="x", folder=tmp_path)
