"""A file appears whole, in the place of a file: nothing else is replaced, and that is told before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmfork.errors import ConfigError
from vmfork.host.whole import written_whole


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".", "is a folder"),
        ("/", "is a folder"),
        ("folder", "is a folder"),
        ("to-folder", "is a folder"),
        ("fifo", "no file that can be replaced"),
        ("to-fifo", "no file that can be replaced"),
        ("/dev/null", "no file that can be replaced"),
        ("none/file", "no folder none"),
        ("file/under", "no folder file"),
    ],
)
def test_what_is_no_place_for_a_file_is_left_alone(tmp_path, monkeypatch, name, says) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "fifo")
    for kind in ("folder", "fifo"):
        (tmp_path / f"to-{kind}").symlink_to(kind)
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}, os.lstat("/dev/null").st_ino
    with pytest.raises(ConfigError, match=says) as refused, written_whole(Path(name)):
        raise AssertionError("the work was begun")
    assert refused.value.hint
    assert ({path.name: path.lstat().st_ino for path in tmp_path.iterdir()}, os.lstat("/dev/null").st_ino) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path, is_there) -> None:
    if is_there:
        (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with written_whole(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}
