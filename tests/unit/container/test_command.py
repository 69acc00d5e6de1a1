"""What an image runs comes back as it was, and what a guest's program wrote in its place is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.container.command import decode_command, encode_command

texts = st.lists(st.text().map(lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")))


@given(texts, texts)
def test_it_comes_back_as_it_was(entrypoint, command):
    assert decode_command(encode_command(entrypoint, command)) == (tuple(entrypoint), tuple(command))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"[]", b"3", b"{}", b'{"entrypoint": [], "command": "x"}', b'{"entrypoint": [1], "command": []}',
        b'{"entrypoint": null, "command": []}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told(data):
    with pytest.raises(ValueError, match="/etc/vmfork/command"):
        decode_command(data)
