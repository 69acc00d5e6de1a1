"""What a guest sends is held to the form of its frames, however it is cut, and refused by what is wrong."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfork.code.door import parse_door
from vmfork.code.frame import VERSION, Answer, AnswerParser, Ask, encode_ask
from vmfork.code.result import parse_done, parse_names, parse_output
from vmfork.errors import GuestError, ProtocolError

WHOLE = b"\0\0\0\2\1hi" + b"\0\0\0\0\4"


def test_a_question_is_its_length_its_kind_and_its_bytes() -> None:
    assert encode_ask(Ask.INTERRUPT, b"5") == b"\0\0\0\1\x025"


@given(st.lists(st.integers(0, len(WHOLE)), max_size=5))
def test_frames_are_the_same_however_their_bytes_are_cut(cuts) -> None:
    ends = [0, *sorted(cuts), len(WHOLE)]
    parser = AnswerParser()
    found = [frame for start, end in pairwise(ends) for frame in parser.feed(WHOLE[start:end])]
    assert found == [(Answer.STDOUT, b"hi"), (Answer.DONE, b"")]


@pytest.mark.parametrize("data", [b"\0\0\0\0\0", b"\0\0\0\0\7", b"\xff\0\0\0\1"])
def test_a_frame_that_no_server_sends_is_refused(data) -> None:
    with pytest.raises(ProtocolError):
        list(AnswerParser().feed(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data) -> None:
    try:
        frames = list(AnswerParser().feed(data))
    except ProtocolError:
        return
    assert sum(5 + len(frame.payload) for frame in frames) <= len(data)


HOSTILE = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["value", "error", "is_lost", "type", "message", "image/png", "text/plain", "port"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=6,
    ).map(lambda found: json.dumps(found).encode()),
)


@settings(max_examples=50)
@given(HOSTILE)
def test_what_is_in_a_frame_is_of_its_type_or_refused(payload) -> None:
    for parse in (parse_done, parse_output, parse_door, lambda found: parse_names(found, most=2)):
        try:
            parse(payload)
        except GuestError:
            continue


def test_what_was_shown_is_by_its_media_type() -> None:
    shown = parse_output(b'{"text/plain": "it", "image/png": "iVBO", "application/json": {"a": [1]}}')
    assert (shown.text, shown.png, shown.json, shown.html) == ("it", b"\x89PN", {"a": [1]}, None)
    for payload in (b'{"image/png": "?"}', b'{"text/html": 5}', b"[]", b"[" * 100_000):
        with pytest.raises(ProtocolError):
            parse_output(payload)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../b", "", "a//b", "a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(name) -> None:
    with pytest.raises(ProtocolError):
        parse_names(json.dumps([name]).encode(), most=9)


def test_a_server_of_another_version_is_named() -> None:
    assert parse_door(b'{"version": %d, "port": 5, "token": "t"}' % VERSION) == (5, "t")
    with pytest.raises(GuestError, match=r"version 9, and this vmfork speaks with"):
        parse_door(b'{"version": 9}')
