"""What requests and answers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.config import ProgramLimits
from vmfork.errors import ProtocolError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import Command, Window
from vmfork.wire.frame import PROTOCOL, FrameParser, Kind, decode_fields, encode_fields
from vmfork.wire.message import ClockReading, ExecStatus, FileStat, Hello, ItemOutcome

ROOT = Path(__file__).parents[3]

HELLO = (b"2", b"0.1.0", b"9f43c15e-ec58-44aa-bd80-17a1c159becc", b"exec,files")
PARSERS = [
    message.parse_error,
    message.parse_hello,
    message.parse_started,
    message.parse_exec,
    message.parse_read,
    message.parse_stat,
    message.parse_outcomes,
    message.parse_card,
    message.parse_disk,
    message.parse_clock,
    message.parse_output,
    message.parse_counts,
    message.parse_left,
    message.parse_asked,
]


def fields_of(request: bytes) -> tuple[int, tuple[bytes, ...]]:
    (frame,) = FrameParser().feed(request)
    assert frame.kind is Kind.REQUEST
    assert frame.stream == 5
    return frame.payload[0], decode_fields(frame.payload[1:])


@pytest.mark.parametrize(
    ("request_bytes", "opcode", "fields"),
    [
        (message.hello_request(5, b"n" * 16), 1, (b"n" * 16, b"%d" % PROTOCOL)),
        (
            message.hello_request(5, b"n" * 16, keep=("programs", "asks")),
            1,
            (b"n" * 16, b"%d" % PROTOCOL, b"programs,asks"),
        ),
        (message.answer_request(5, 3, b"forked 1"), 30, (b"3", b"forked 1")),
        (message.take_request(5, 17), 28, (b"17",)),
        (message.net_request(5, "020000000001"), 15, (b"020000000001",)),
        (
            message.net_request(5, "020000000001", "10.0.2.16", "24", "10.0.2.2"),
            15,
            (b"020000000001", b"10.0.2.16", b"24", b"10.0.2.2"),
        ),
        (message.keep_request(5, 3, 17), 246, (b"3", b"17")),
        (
            message.exec_request(
                5, Command(["a", "b c"], env={"K": "V=1"}, cwd="/w", user="u", stdin=True, clean_env=True)
            )[0],
            3,
            (b"stdin,clean-env", b"/w", b"u", b"2", b"a", b"b c", b"K=V=1"),
        ),
        (
            message.exec_request(
                5, Command(["a"], window=Window(24, 80), limits=ProgramLimits(cpu_s=1.5, memory_mib=2, processes=3))
            )[0],
            3,
            (
                b"memory=2097152,processes=3,cpu-ms=1500,terminal,rows=24,columns=80",
                *(b"", b"", b"1", b"a", b"TERM=xterm-256color"),
            ),
        ),
        (message.kill_request(5, 9, 15), 4, (b"9", b"15")),
        (message.resize_request(5, 9, Window(24, 80)), 18, (b"9", b"24", b"80")),
        (message.read_request(5, "/f", 7, None), 5, (b"/f", b"7", b"")),
        (message.read_request(5, "/f", 0, 3), 5, (b"/f", b"0", b"3")),
        (
            message.write_request(5, "/f", 0o640, append=False, parents=True, exclusive=True),
            6,
            (b"/f", b"640", b"parents,exclusive"),
        ),
        (
            message.write_request(5, "/f", None, append=False, parents=False, exclusive=False, size=7),
            6,
            (b"/f", b"", b"", b"7"),
        ),
        (message.stat_request(5, "/f"), 7, (b"/f",)),
        (message.list_request(5, "/d"), 8, (b"/d",)),
        (message.remove_request(5, "/d", recursive=True), 9, (b"/d", b"recursive")),
        (message.make_dir_request(5, "/d", 0o1777, parents=False), 10, (b"/d", b"1777", b"")),
        (message.adopt_request(5, [("fork-id", b"f"), ("env", b"A=1")]), 11, (b"fork-id", b"f", b"env", b"A=1")),
        (message.clock_request(5, None), 12, (b"",)),
        (message.put_request(5, "/d", parents=True, archive=True, size=7), 19, (b"/d", b"parents,archive", b"7")),
        (message.get_request(5, "/d"), 20, (b"/d", b"")),
        (message.get_request(5, "/d", names=True), 20, (b"/d", b"names")),
        (message.move_request(5, "/a", "/b"), 21, (b"/a", b"/b")),
        (message.change_request(5, "/a", mode=0o640), 22, (b"/a", b"640", b"", b"")),
        (message.change_request(5, "/a", user="u", group="g"), 22, (b"/a", b"", b"u", b"g")),
        (message.connect_request(5, 65_535), 23, (b"65535",)),
        (message.connect_request(5, 80, 262_144), 23, (b"80", b"262144")),
        (message.listen_request(5, 80), 24, (b"80",)),
        (message.attach_request(5, 9, 3), 25, (b"9", b"3")),
        (message.attach_request(5, 9, 3, 65_536), 25, (b"9", b"3", b"65536")),
        (message.notify_request(5, 1.5), 17, (b"1500",)),
        (message.notify_request(5, 0.0), 17, (b"1",)),
        (message.clock_request(5, 10**18), 12, (b"1000000000000000000",)),
    ],
)
def test_a_request_has_the_fields_of_the_specification(
    request_bytes: bytes, opcode: int, fields: tuple[bytes, ...]
) -> None:
    assert fields_of(request_bytes) == (opcode, fields)


def test_answers_become_values() -> None:
    assert message.parse_hello(encode_fields(*HELLO)) == Hello(
        2, "0.1.0", "9f43c15e-ec58-44aa-bd80-17a1c159becc", frozenset({"exec", "files"})
    )
    assert message.parse_exec(encode_fields(b"exit", b"3", b"1500000000")) == ExecStatus("exit", 3, 1.5)
    used = encode_fields(b"signal", b"9", b"1500000000", b"250000000", b"1048576", b"memory")
    assert message.parse_exec(used) == ExecStatus("signal", 9, 1.5, 0.25, 1_048_576, "memory")
    assert message.parse_started(encode_fields(b"started", b"42")) == 42
    assert message.parse_caller(encode_fields(b"connection", b"42")) == 42
    assert message.parse_caller(encode_fields(b"listening")) is None
    assert message.parse_asked(encode_fields(b"serving")) is None
    assert message.parse_asked(encode_fields(b"asked", b"3", b"42", b"fork 2")) == message.Asked(3, 42, b"fork 2")
    assert message.parse_asked(encode_fields(b"gone", b"3")) == message.Asked(3)
    left = encode_fields(b"17", b"42", b"stdin", b"2", b"cat", b"-", b"18", b"43", b"", b"0")
    assert message.parse_left(left) == (
        message.LeftProgram(17, 42, has_stdin=True, has_terminal=False, argv=("cat", "-")),
        message.LeftProgram(18, 43, has_stdin=False, has_terminal=False, argv=()),
    )
    assert message.parse_read(encode_fields(b"12", b"644")) == (12, 0o644)
    assert message.parse_stat(encode_fields(b"link", b"777", b"3", b"5", b"0", b"1", b"to")) == FileStat(
        "link", 0o777, 3, 5, 0, 1, "to"
    )
    assert message.parse_outcomes(encode_fields(b"env", b"ok", b"A", b"x", b"io", b"")) == (
        ItemOutcome("env", "ok", b"A"),
        ItemOutcome("x", "io", b""),
    )
    assert message.parse_card(encode_fields(b"eth0", b"02", b"")) == ("eth0", "02", "")
    assert message.parse_disk(encode_fields(b"vda", b"1024")) == ("vda", 1024)
    assert message.parse_clock(encode_fields(b"7", b"8")) == (7, 8)
    assert ClockReading(7, 8, 6, 9).wall_ns == 7


def test_an_exit_code_is_a_shells() -> None:
    assert ExecStatus("exit", 3, 0.0).exit_code == 3
    assert ExecStatus("signal", 9, 0.0).exit_code == 137


def test_the_protocol_before_this_one_is_served() -> None:
    assert message.parse_hello(encode_fields(b"1", *HELLO[1:])).protocol == 1


def test_a_command_that_fits_into_no_frame_comes_behind_its_request() -> None:
    for length, behind in ((message.LISTS_IN_REQUEST - 9, False), (message.LISTS_IN_REQUEST - 8, True)):
        argv = ["a", "b" * length]
        request, lists = message.exec_request(5, Command(argv, cwd="/" + "c" * 4095, user="u"), contained=True)
        _, fields = fields_of(request)
        assert fields[0] == (b"contained,arguments" if behind else b"contained")
        assert fields[3] == b"2"
        assert fields[4:] + decode_fields(lists) == tuple(map(str.encode, argv))
        assert bool(lists) is behind


@pytest.mark.parametrize("fields", [(b"9", b"9.0"), (b"0", b"0.0.1", b"", b"")])
def test_another_protocol_is_refused_by_both_numbers(fields: tuple[bytes, ...]) -> None:
    with pytest.raises(
        ProtocolError, match=rf"protocol {fields[0].decode()}, this vmfork speaks 1, 2, 3, {PROTOCOL}"
    ) as caught:
        message.parse_hello(encode_fields(*fields))
    assert caught.value.hint


@pytest.mark.parametrize("parse", PARSERS)
@given(
    payload=st.one_of(st.binary(max_size=80), st.builds(encode_fields, st.binary(max_size=9), st.binary(max_size=9)))
)
def test_an_answer_is_a_value_or_a_protocol_error(parse, payload: bytes) -> None:
    try:
        parse(payload)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("parse", "fields"),
    [
        (message.parse_exec, (b"exit", b"100000000000000000000", b"5")),
        (message.parse_exec, (b"exit", b"256", b"5")),
        (message.parse_exec, (b"exit", b"-1", b"5")),
        (message.parse_exec, (b"signal", b"0", b"5")),
        (message.parse_exec, (b"exit", b"0", b"9" * 400)),
        (message.parse_error, (b"io", b"words", b"4096")),
        (message.parse_error, (b"io", b"words", b"9" * 5000)),
        (message.parse_started, (b"started", b"0")),
        (message.parse_started, (b"started", b"-7")),
        (message.parse_caller, (b"connection", b"0")),
        (message.parse_left, (b"1", b"0", b"", b"0")),
        (message.parse_left, (b"1", b"42", b"", b"2", b"one")),
        (message.parse_left, (b"1", b"42", b"elsewhere", b"0")),
        (message.parse_asked, (b"asked", b"0", b"42", b"x")),
        (message.parse_asked, (b"gone", b"4294967296")),
        (message.parse_caller, (b"connection", b"4294967296")),
        (message.parse_read, (b"1", b"10000")),
        (message.parse_read, (b"-1", b"644")),
        (message.parse_read, (b"1_0", b"644")),
        (message.parse_read, (b" 1", b"644")),
        (message.parse_stat, (b"file", b"644", b"1", b"1", b"4294967296", b"0", b"")),
        (message.parse_clock, (b"9223372036854775808", b"1")),
        (message.parse_hello, (b"9" * 5000, b"1", b"", b"")),
    ],
)
def test_a_number_that_linux_does_not_have_is_a_protocol_error(parse, fields) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(encode_fields(*fields))
    assert len(str(caught.value)) < 200


def test_what_people_are_shown_of_a_guest_is_short() -> None:
    long = b"x" * 200_000
    failure = message.parse_error(encode_fields(long, long, b"5"))
    hello = message.parse_hello(encode_fields(b"3", long, long, b"exec"))
    (outcome,) = message.parse_outcomes(encode_fields(long, long, b"evidence"))
    shown = [failure.code, failure.message, hello.agent_version, hello.boot_id, outcome.item, outcome.outcome]
    assert max(map(len, shown)) == 1000
    for parse, fields in (
        (message.parse_started, (long, b"7")),
        (message.parse_connected, (long,)),
        (message.parse_caller, (long,)),
        (message.parse_exec, (long, b"0", b"5")),
        (message.parse_stat, (long, b"644", b"1", b"1", b"0", b"0", b"")),
    ):
        with pytest.raises(ProtocolError) as caught:
            parse(encode_fields(*fields))
        assert len(str(caught.value)) < 400


def test_the_codes_of_errors_are_those_of_the_document_and_of_the_agent() -> None:
    text = (ROOT / "docs" / "reference" / "wire.md").read_text().split("**Error codes:**")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", text)) == set(ErrorCode)
    guest = (ROOT / "guest" / "errors.c").read_text()
    assert set(re.findall(r'\{E\w+, +"([a-z-]+)"\}', guest)) <= set(ErrorCode)
