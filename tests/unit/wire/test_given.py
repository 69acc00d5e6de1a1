"""What callers give is taken in every sensible form, and refused by its name in every other."""

from __future__ import annotations

import array
from pathlib import PurePosixPath

import pytest

from vmfork.errors import ConfigError
from vmfork.wire.given import PlacedFile, check_content, check_file, check_local, check_path, name_of


def test_paths_may_be_text_or_path_objects() -> None:
    assert check_path("/tmp/x") == check_path(PurePosixPath("/tmp/x")) == "/tmp/x"


@pytest.mark.parametrize("path", ["etc/passwd", "", "/a\0b", b"/tmp", 5, None])
def test_what_is_no_guests_path_is_refused_by_name(path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_path(path)
    assert refused.value.field == "path"


def test_content_counts_in_bytes_whatever_the_shape() -> None:
    wide = array.array("i", range(1000))
    for given in (wide, memoryview(wide), memoryview(wide.tobytes()).cast("B", (40, 100)), bytearray(wide.tobytes())):
        assert check_content(given, field="input") == wide.tobytes()
    assert check_content("é", field="input") == b"\xc3\xa9"


@pytest.mark.parametrize("content", [5, None, ["x"], "\udcff", 1.5])
def test_what_has_no_bytes_is_refused_by_name(content) -> None:
    with pytest.raises(ConfigError) as refused:
        check_content(content, field="input")
    assert refused.value.field == "input"


def test_a_path_that_is_not_absolute_is_refused_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(ConfigError, match="path: 'etc/passwd' is not absolute") as refused:
        check_path("etc/passwd")
    assert refused.value.hint.endswith("/etc/passwd?")


def test_a_file_of_the_host_keeps_its_mode_but_lends_no_rights(tmp_path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    for mode, kept in ((0o600, 0o600), (0o755, 0o755), (0o444, 0o444), (0o6711, 0o711)):
        path.chmod(mode)
        assert check_file(path, field="files") == PlacedFile(b"x", kept)
    for content in (b"x", "x", bytearray(b"x"), PlacedFile(b"x")):
        assert check_file(content, field="files") == PlacedFile(b"x", 0o600)
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=f"files: {wrong} cannot be read"):
            check_file(wrong, field="files")


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_what_is_no_path_of_the_host_is_refused_by_name(path) -> None:
    with pytest.raises(ConfigError, match="local"):
        check_local(path)


def test_the_last_name_of_a_path_is_a_name() -> None:
    paths = ("/a/b", "/a/b//", "/", "/a/..", "/.", "/a/\udcff")
    assert [name_of(path) for path in paths] == ["b", "b", "root", "root", "root", "\udcff"]
