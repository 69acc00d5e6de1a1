"""Bytes to frames and back: the literals of docs/reference/wire.md, then what holds for any bytes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.errors import ProtocolError
from vmfork.wire.command import Window
from vmfork.wire.frame import (
    FIRST_CREDIT,
    IDLE,
    PAYLOAD_LIMIT,
    TAKE_OVER_PREAMBLE,
    Channel,
    Frame,
    FrameParser,
    Kind,
    Opcode,
    decode_credit,
    decode_data,
    decode_eof,
    decode_fields,
    encode_credit,
    encode_data,
    encode_eof,
    encode_fields,
    encode_frame,
    encode_request,
)
from vmfork.wire.message import connect_request, notify_request, resize_request, take_request

SPECIFICATION = Path(__file__).parents[3] / "docs" / "reference" / "wire.md"

LITERALS = {
    "PING on stream 1": encode_request(1, Opcode.PING),
    "its REPLY": encode_frame(Kind.REPLY, 1),
    '"hi" to stdin of stream 7': encode_data(7, Channel.CONTENT, b"hi"),
    "EOF of stdin of stream 7": encode_eof(7, Channel.CONTENT),
    "CREDIT 4096 for stdout of 7": encode_credit(7, Channel.STDOUT, 4096),
    "RESIZE of 7 to 24 by 80, on 8": resize_request(8, 7, Window(24, 80)),
    "CONNECT to port 80, on 5": connect_request(5, 80),
    "DISK on stream 4": encode_request(4, Opcode.DISK),
    "TAKE of program 17, on 5": take_request(5, 17),
    "NOTIFY on stream 4, 500 ms": notify_request(4, 0.5),
    "ERROR not-found on stream 3": encode_frame(Kind.ERROR, 3, encode_fields(b"not-found", b"", b"2")),
}

frames = st.builds(
    Frame, st.sampled_from(Kind), st.integers(min_value=0, max_value=0xFFFF_FFFF), st.binary(max_size=300)
)


def specified_literals() -> dict[str, bytes]:
    block = SPECIFICATION.read_text().split("## Literals")[1].split("```")[1]
    lines = (re.split(r"\s{2,}", line, maxsplit=1) for line in block.strip().splitlines())
    return {name: bytes.fromhex(digits) for name, digits in lines}


def encoded(frame: Frame) -> bytes:
    return encode_frame(frame.kind, frame.stream, frame.payload)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def test_the_specification_has_exactly_the_literals_tested_here() -> None:
    assert specified_literals().keys() == LITERALS.keys()


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_of_the_specification_is_what_is_sent(name: str) -> None:
    assert LITERALS[name] == specified_literals()[name]


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_of_the_specification_parses_to_itself(name: str) -> None:
    (frame,) = FrameParser().feed(specified_literals()[name])
    assert encoded(frame) == LITERALS[name]


def test_the_preamble_completes_the_longest_half_sent_frame() -> None:
    assert len(TAKE_OVER_PREAMBLE) == 262_153
    longest = encode_frame(Kind.DATA, 1, b"\0" * PAYLOAD_LIMIT)
    for sent in (9, 10, len(longest) - 1):
        got = FrameParser().feed(longest[:sent] + TAKE_OVER_PREAMBLE + encode_frame(Kind.REPLY, 2))
        assert [frame.stream for frame in got] == [1, 2]


@given(st.lists(frames, max_size=5), st.lists(st.integers(min_value=0), max_size=12))
def test_frames_survive_any_cutting(sent: list[Frame], places: list[int]) -> None:
    parser = FrameParser()
    pieces = cut(b"".join(map(encoded, sent)), places)
    assert [frame for piece in pieces for frame in parser.feed(piece)] == sent


@given(st.lists(frames, max_size=5), st.integers(min_value=0, max_value=20))
def test_idle_bytes_between_frames_are_nothing(sent: list[Frame], idle: int) -> None:
    data = b"".join(IDLE * idle + encoded(frame) for frame in sent) + IDLE * idle
    assert FrameParser().feed(data) == sent


@given(st.lists(frames, max_size=9), st.integers(min_value=1, max_value=4), st.integers(min_value=0, max_value=9))
def test_frames_come_in_turns_of_so_many(sent: list[Frame], most: int, idle: int) -> None:
    parser = FrameParser()
    turns = [parser.feed(b"".join(IDLE * idle + encoded(frame) for frame in sent), most=most)]
    while len(turns[-1]) == most:
        turns.append(parser.feed(b"", most=most))
    assert [frame for turn in turns for frame in turn] == sent
    assert max(map(len, turns)) <= most
    assert parser.is_idle
    assert parser.wasted == idle * len(sent)


def test_what_is_no_part_of_a_frame_is_counted_as_waste() -> None:
    parser = FrameParser()
    parser.expect_nonce(b"n" * 16)
    parser.feed(b"before")
    parser.feed(b"n" * 16 + IDLE * 1000 + encode_frame(Kind.REPLY, 1))
    assert parser.wasted == 1006


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=8))
def test_garbage_is_frames_or_a_protocol_error_and_nothing_else(data: bytes, places: list[int]) -> None:
    parser = FrameParser()
    try:
        for piece in cut(data, places):
            parser.feed(piece)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            parser.feed(b"")


@given(st.binary(max_size=400), st.binary(min_size=16, max_size=16), frames, st.lists(st.integers(min_value=0)))
def test_a_nonce_is_found_behind_anything(before: bytes, nonce: bytes, frame: Frame, places: list[int]) -> None:
    before = before.replace(nonce, b"")
    whole = before + nonce
    if whole.find(nonce) != len(before):
        return
    parser = FrameParser()
    parser.expect_nonce(nonce)
    assert [got for piece in cut(whole + encoded(frame), places) for got in parser.feed(piece)] == [frame]


def test_expecting_a_nonce_mends_a_parser_that_lost_the_line() -> None:
    parser = FrameParser()
    with pytest.raises(ProtocolError):
        parser.feed(b"\x01")
    parser.expect_nonce(b"n" * 16)
    assert parser.feed(b"\x01junk" + b"n" * 16 + encode_frame(Kind.REPLY, 1)) == [Frame(Kind.REPLY, 1, b"")]


def test_good_frames_before_a_bad_one_are_delivered() -> None:
    parser = FrameParser()
    assert parser.feed(encode_frame(Kind.REPLY, 1) + b"\x01") == [Frame(Kind.REPLY, 1, b"")]
    with pytest.raises(ProtocolError):
        parser.feed(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        bytes.fromhex("00040001 04 00000001"),
        bytes.fromhex("00000000 00 00000001"),
        bytes.fromhex("00000000 08 00000001"),
    ],
    ids=["no frame starts so", "too long", "kind 0", "kind 8"],
)
def test_a_header_that_may_not_be_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameParser().feed(data)


def test_a_payload_may_be_as_long_as_the_limit_and_no_longer() -> None:
    longest = Frame(Kind.DATA, 1, b"\0" * PAYLOAD_LIMIT)
    assert FrameParser().feed(encoded(longest)) == [longest]
    with pytest.raises(ProtocolError):
        encode_frame(Kind.DATA, 1, b"\0" * (PAYLOAD_LIMIT + 1))


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_fields_come_back(fields: list[bytes]) -> None:
    assert decode_fields(encode_fields(*fields)) == tuple(fields)


@given(st.binary(max_size=80))
def test_bytes_that_decode_as_fields_encode_to_themselves(payload: bytes) -> None:
    try:
        fields = decode_fields(payload)
    except ProtocolError:
        return
    assert encode_fields(*fields) == payload


@pytest.mark.parametrize("payload", [b"\0", b"\0\0\0", b"\0\0\0\x02a", b"\0\0\0\x01ab"])
def test_half_a_field_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_fields(payload)


def test_more_fields_than_there_may_be_are_not_told_apart() -> None:
    assert decode_fields(encode_fields(b"a", b"b"), most=2) == (b"a", b"b")
    with pytest.raises(ProtocolError, match="more than 2 fields"):
        decode_fields(b"\0" * PAYLOAD_LIMIT, most=2)


def test_channel_frames_decode() -> None:
    assert decode_data(b"\x02err") == (Channel.STDERR, b"err")
    assert decode_eof(b"\x01") is Channel.STDOUT
    assert decode_credit(b"\x00\x00\x01\x00\x00") == (Channel.CONTENT, FIRST_CREDIT)


@pytest.mark.parametrize(
    ("decode", "payload"),
    [
        (decode_data, b""),
        (decode_data, b"\x04"),
        (decode_eof, b""),
        (decode_eof, b"\0\0"),
        (decode_credit, b"\0\0\0\0"),
    ],
)
def test_a_channel_frame_that_may_not_be_is_a_protocol_error(decode, payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(payload)
