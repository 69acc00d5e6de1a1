"""A manifest comes back as it was written, or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vmfork.errors import TemplateCorrupt, TemplateStale
from vmfork.store import Manifest
from vmfork.store.manifest import FORMAT, WITHOUT_DISK, fingerprint_of

FIELDS = [f.name for f in fields(Manifest)]
NEEDED = [f.name for f in fields(Manifest) if f.default is MISSING and f.default_factory is MISSING]
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read(data: bytes) -> Manifest:
    return Manifest.from_json(data, name="one")


def sealed(body: dict) -> bytes:
    """`body` with the checksum that belongs to it, as one who wanted to forge a manifest would write it."""
    body = {key: value for key, value in body.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "checksum": digest}).encode()


def other_than(value):
    """Something of the same type that is not `value`."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, "x"]
        case _:
            return {**value, "x": "x"}


@QUICK
@given(
    name=st.text(),
    warm_up=st.lists(st.text()),
    traits=st.dictionaries(st.text(), st.text()),
    timings=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    size=st.integers(0, 2**63),
    vmgenid=st.booleans(),
)
def test_any_manifest_comes_back_as_it_was(make_manifest, name, warm_up, traits, timings, size, vmgenid):
    manifest = make_manifest(
        name=name, warm_up=tuple(warm_up), traits=traits, timings=timings, memory_bytes=size, vmgenid=vmgenid
    )
    assert read(manifest.to_json()) == manifest


def test_a_manifest_cut_at_any_length_is_corrupt(make_manifest):
    data = make_manifest().to_json()
    for length in range(len(data) - 1):  # the last byte is a newline, which says nothing
        with pytest.raises(TemplateCorrupt):
            read(data[:length])


@QUICK
@given(data=st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(make_manifest, data):
    manifest = make_manifest()
    damaged = bytearray(manifest.to_json())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(damaged))
    except (TemplateCorrupt, TemplateStale):
        return
    assert found == manifest


@QUICK
@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_what_is_no_manifest_is_corrupt(data):
    assume(not data.lstrip().startswith(b"{"))  # it may be an object, which is one of another format
    with pytest.raises(TemplateCorrupt, match=r"not JSON|not a JSON object"):
        read(data)


def test_json_too_deep_to_parse_is_corrupt():
    with pytest.raises(TemplateCorrupt):
        read(b"[" * 1_000_000)
    with pytest.raises(TemplateCorrupt):
        read(b'{"format":' + b'{"a":' * 1_000_000)


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "format"])
def test_an_edited_field_is_corrupt(make_manifest, field):
    body = json.loads(make_manifest().to_json())
    with pytest.raises(TemplateCorrupt, match="edited or damaged"):
        read(json.dumps({**body, field: other_than(body[field])}).encode())


@pytest.mark.parametrize("field", NEEDED)
def test_a_missing_field_is_corrupt_even_with_a_right_checksum(make_manifest, field):
    body = json.loads(make_manifest().to_json())
    del body[field]
    with pytest.raises(TemplateCorrupt, match=f"{field} is missing"):
        read(sealed(body))


@pytest.mark.parametrize("field", sorted({*FIELDS} - {*NEEDED, "format"}))
def test_a_field_that_an_older_vmfork_did_not_write_takes_its_default(make_manifest, field):
    body = json.loads(make_manifest(warm_up=(), timings={}).to_json())
    del body[field]
    assert read(sealed(body)) == make_manifest(warm_up=(), timings={})


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "format"])
def test_a_field_of_another_type_is_corrupt_even_with_a_right_checksum(make_manifest, field):
    body = json.loads(make_manifest().to_json())
    with pytest.raises(TemplateCorrupt, match=field):
        read(sealed({**body, field: None}))


def test_what_a_newer_vmfork_adds_in_this_format_is_left_out(make_manifest):
    body = json.loads(make_manifest().to_json())
    assert read(sealed({**body, "colour": "green"})) == make_manifest()


@pytest.mark.parametrize("checksum", [None, "", 0, [], "0" * 64])
def test_a_wrong_or_missing_checksum_is_corrupt(make_manifest, checksum):
    body = json.loads(make_manifest().to_json())
    with pytest.raises(TemplateCorrupt, match="checksum"):
        read(json.dumps({**body, "checksum": checksum}).encode())
    del body["checksum"]
    with pytest.raises(TemplateCorrupt, match="checksum"):
        read(json.dumps(body).encode())


@pytest.mark.parametrize("have", [WITHOUT_DISK - 1, FORMAT + 1, str(FORMAT), None])
def test_another_format_is_stale_whatever_else_it_says(make_manifest, have):
    body = json.loads(make_manifest().to_json())
    with pytest.raises(TemplateStale) as caught:
        read(sealed({**body, "format": have, "new-thing": 1}))
    assert (caught.value.name, caught.value.field, caught.value.have, caught.value.want) == (
        "one",
        "format",
        have,
        FORMAT,
    )


def test_one_of_the_format_before_disks_is_read_and_has_none(make_manifest):
    body = json.loads(make_manifest().to_json())
    older = {key: value for key, value in body.items() if not key.startswith("disk_")}
    manifest = read(sealed({**older, "format": WITHOUT_DISK}))
    assert (manifest.format, manifest.disk_mib, manifest.disk_sha256) == (WITHOUT_DISK, 0, "")


def test_a_manifest_without_format_is_stale(make_manifest):
    body = json.loads(make_manifest().to_json())
    del body["format"]
    with pytest.raises(TemplateStale):
        read(sealed(body))


@pytest.mark.parametrize("field", ["qemu.version", "machine", "accel", "cpu_model", "image.kernel", "kernel_args"])
def test_another_trait_is_stale_by_name(make_manifest, field):
    manifest = make_manifest()
    manifest.check_traits(manifest.traits)
    with pytest.raises(TemplateStale) as caught:
        manifest.check_traits({**manifest.traits, field: "other"})
    error = caught.value
    assert (error.field, error.have, error.want) == (field, manifest.traits[field], "other")
    assert field in error.message
    assert "replace=True" in error.hint


def test_the_first_trait_in_order_is_the_one_named(make_manifest):
    manifest = make_manifest()
    wanted = dict.fromkeys(manifest.traits, "other")
    assert manifest.find_difference(wanted) == "qemu.version"
    assert manifest.find_difference({}) is None


def test_a_trait_that_the_template_has_not_is_stale(make_manifest):
    with pytest.raises(TemplateStale) as caught:
        make_manifest(traits={}).check_traits({"accel": "kvm"})
    assert (caught.value.have, caught.value.want) == (None, "kvm")


@given(traits=st.dictionaries(st.text(), st.text(), min_size=1), key=st.text(), value=st.text())
def test_a_fingerprint_is_of_the_content_not_of_the_order(traits, key, value):
    backwards = dict(reversed(traits.items()))
    assert fingerprint_of(traits) == fingerprint_of(backwards)
    changed = {**traits, key: value}
    assert (fingerprint_of(changed) == fingerprint_of(traits)) == (changed == traits)


def test_a_template_of_before_there_were_cards_has_none(make_manifest) -> None:
    older = make_manifest()
    assert "nic" not in older.traits
    older.check_traits({"nic": "off"})
    with pytest.raises(TemplateStale, match="nic"):
        older.check_traits({"nic": "on"})
