"""Frames and fields: the bytes on the line."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vmfork.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 4
# Protocol 1 lacks NOTIFY, 1 and 2 what `FIRST_WITH_ROOM` names, and all before 4 what `FIRST_WITH_TERMINALS` does; all
# else is the same.
SUPPORTED_PROTOCOLS = frozenset({1, 2, 3, PROTOCOL})
FIRST_WITH_NOTIFY = 2
# It has contained programs, commands longer than a frame, WRITE without a mode and with a size, GROWN, and more open
# requests.
FIRST_WITH_ROOM = 3
# It has terminals and RESIZE, limits for one program, and tells what a program used.
FIRST_WITH_TERMINALS = 4

# Requests that an agent has open at most; one of an older protocol has fewer.
MOST_OPEN = 1024
MOST_OPEN_BEFORE = 64
# Connections to ports of the guest, which are counted apart.
MOST_TUNNELS = 256
# Programs of the guest that ask.
MOST_ASKING = 64
# Connections that a port of the guest has taken, and that were not attached yet.
MOST_CALLERS = 16

PAYLOAD_LIMIT = 262_144
FIRST_CREDIT = 65_536
# The agent gives back what was used up, so a channel to it never has more credit than at first. A host that counted on
# more would queue, for a guest that reads nothing, whatever it was given to send.
MOST_CREDIT = 16 * FIRST_CREDIT
NONCE_SIZE = 16
IDLE = b"\xff"
# Completes any half-sent frame: a header and the largest payload.
TAKE_OVER_PREAMBLE = IDLE * (9 + PAYLOAD_LIMIT)

_HEADER = struct.Struct(">IBI")
HEADER_SIZE = _HEADER.size
_U32 = struct.Struct(">I")
_CREDIT = struct.Struct(">BI")
# In C: a loop over 64 KiB of idle bytes took 2 ms of every other machine's time.
_IDLE_RUN = re.compile(rb"\xff*")


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3
    DATA = 4
    EOF = 5
    CREDIT = 6
    EVENT = 7


class Opcode(IntEnum):
    """What a request asks."""

    HELLO = 1
    PING = 2
    EXEC = 3
    KILL = 4
    READ = 5
    WRITE = 6
    STAT = 7
    LIST = 8
    REMOVE = 9
    MKDIR = 10
    ADOPT = 11
    CLOCK = 12
    QUIESCE = 13
    GROWN = 14
    NET = 15
    SHUTDOWN = 16
    NOTIFY = 17
    RESIZE = 18
    PUT = 19
    GET = 20
    MOVE = 21
    CHANGE = 22
    CONNECT = 23
    LISTEN = 24
    ATTACH = 25
    WATCH = 26
    LEFT = 27
    TAKE = 28
    SERVE = 29
    ANSWER = 30
    DISK = 31


class BrokerOpcode(IntEnum):
    """What a client asks the broker of a detached machine. No agent knows these."""

    STATUS = 240
    RELEASE = 241
    END = 242
    BACKGROUND = 243
    OUTPUT = 244
    SIGNAL = 245
    KEEP = 246


class Channel(IntEnum):
    """Where the bytes of a DATA frame belong.

    Content is standard input, or what a file holds; arguments are a command that is too long for its request.
    """

    CONTENT = 0
    STDOUT = 1
    STDERR = 2
    ARGUMENTS = 3


class Frame(NamedTuple):
    """One frame as it came."""

    kind: Kind
    stream: int
    payload: bytes


_KINDS = {kind.value: kind for kind in Kind}
_CHANNELS = {channel.value: channel for channel in Channel}


def encode_frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises `ProtocolError` when the payload is larger than a frame may be."""
    if len(payload) > PAYLOAD_LIMIT:
        raise ProtocolError(f"a frame holds at most {PAYLOAD_LIMIT} bytes, not {len(payload)}")
    return _HEADER.pack(len(payload), kind, stream) + payload


def encode_fields(*fields: bytes) -> bytes:
    """The fields, each behind its length."""
    return b"".join([part for field in fields for part in (_U32.pack(len(field)), field)])


def decode_fields(payload: bytes, *, most: int = PAYLOAD_LIMIT) -> tuple[bytes, ...]:
    """The fields of a payload, `most` of them. Raises `ProtocolError` when it holds more, or anything else."""
    fields: list[bytes] = []
    at, end = 0, len(payload)
    while at < end:
        if len(fields) == most:
            raise ProtocolError(f"there are more than {most} fields")
        if end - at < 4:
            raise ProtocolError("a field's length is cut off")
        start = at + 4
        at = start + _U32.unpack_from(payload, at)[0]
        if at > end:
            raise ProtocolError("a field is longer than its frame")
        fields.append(payload[start:at])
    return tuple(fields)


class RecordParser:
    """Bytes in any pieces become records of `count` fields, each of no more than `most` bytes in all."""

    def __init__(self, count: int, *, most: int) -> None:
        self._held = bytearray()
        self._count = count
        self._most = most

    @property
    def is_idle(self) -> bool:
        """It stands between two records."""
        return not self._held

    def feed(self, data: bytes | bytearray) -> Iterator[list[bytes]]:
        """The records that `data` completes. Raises `ProtocolError` for one that is too long."""
        self._held += data
        at = 0
        try:
            while (fields := self._cut(at)) is not None:
                at += sum(map(len, fields)) + self._count * _U32.size
                yield fields
        finally:
            del self._held[:at]

    def _cut(self, at: int) -> list[bytes] | None:
        """The fields of the next record, where all of them are there."""
        held, begin, fields = self._held, at, []
        for _ in range(self._count):
            start = at + _U32.size
            if len(held) < start:
                return None
            at = start + _U32.unpack_from(held, at)[0]
            if at - begin > self._most:
                raise ProtocolError(f"{self._count} fields are announced that have more than {self._most} bytes")
            if len(held) < at:
                return None
            fields.append(bytes(held[start:at]))
        return fields


def encode_request(stream: int, opcode: Opcode | BrokerOpcode, *fields: bytes, behind: bytes = b"") -> bytes:
    """A REQUEST frame. `behind` are fields that were encoded before."""
    return encode_frame(Kind.REQUEST, stream, bytes((opcode,)) + encode_fields(*fields) + behind)


def encode_data(stream: int, channel: Channel, data: bytes) -> bytes:
    """A DATA frame."""
    return encode_frame(Kind.DATA, stream, bytes((channel,)) + data)


def encode_eof(stream: int, channel: Channel) -> bytes:
    """An EOF frame."""
    return encode_frame(Kind.EOF, stream, bytes((channel,)))


def encode_credit(stream: int, channel: Channel, count: int) -> bytes:
    """A CREDIT frame."""
    return encode_frame(Kind.CREDIT, stream, _CREDIT.pack(channel, count))


def _channel(number: int) -> Channel:
    channel = _CHANNELS.get(number)
    if channel is None:
        raise ProtocolError(f"there is no channel {number}")
    return channel


def decode_data(payload: bytes) -> tuple[Channel, bytes]:
    """Channel and bytes of a DATA frame."""
    if not payload:
        raise ProtocolError("a DATA frame names no channel")
    return _channel(payload[0]), payload[1:]


def decode_eof(payload: bytes) -> Channel:
    """The channel of an EOF frame."""
    if len(payload) != 1:
        raise ProtocolError("an EOF frame has exactly one byte")
    return _channel(payload[0])


def decode_credit(payload: bytes) -> tuple[Channel, int]:
    """Channel and number of bytes of a CREDIT frame."""
    if len(payload) != _CREDIT.size:
        raise ProtocolError(f"a CREDIT frame has exactly {_CREDIT.size} bytes")
    number, count = _CREDIT.unpack(payload)
    return _channel(number), count


class FrameParser:
    """Bytes in any pieces become frames.

    A parser that raised `ProtocolError` has lost the line, and raises it again for whatever follows. After
    `expect_nonce` everything up to the end of the nonce is thrown away, and parsing begins anew behind it.

    `wasted` counts the bytes that were no part of a frame: idle ones, and those before a nonce.
    """

    def __init__(self) -> None:
        self.wasted = 0
        self._held = bytearray()
        self._nonce = b""
        self._broken: ProtocolError | None = None

    @property
    def is_idle(self) -> bool:
        """It stands between two frames."""
        return not self._held and not self._nonce and self._broken is None

    def expect_nonce(self, nonce: bytes) -> None:
        """Nothing is parsed until the nonce has come. What the parser held is forgotten."""
        self._held.clear()
        self._nonce = nonce
        self._broken = None

    def check(self) -> None:
        """Raises the `ProtocolError` with which the line was lost, if it was."""
        if self._broken is not None:
            raise self._broken

    def feed(self, data: bytes, *, most: int | None = None) -> list[Frame]:
        """The frames that are complete now, in order; `most` of them at most, and the next call goes on behind them.

        A bad frame is reported by the call after the one that returned the good ones before it, so none is lost.
        """
        self.check()
        self._held += data
        if self._nonce and not self._skip_to_nonce():
            return []
        frames: list[Frame] = []
        try:
            self._parse(frames, most)
        except ProtocolError as error:
            self._broken = error
            if not frames:
                raise
        return frames

    def _skip_to_nonce(self) -> bool:
        at = self._held.find(self._nonce)
        if at < 0:
            passed = max(0, len(self._held) - len(self._nonce) + 1)
            self.wasted += passed
            del self._held[:passed]
            return False
        self.wasted += at
        del self._held[: at + len(self._nonce)]
        self._nonce = b""
        return True

    def _parse(self, frames: list[Frame], most: int | None) -> None:
        held, at = self._held, 0
        view = memoryview(held)
        try:
            while most is None or len(frames) < most:
                at = self._skip_idle(at)
                if len(held) - at < _HEADER.size:
                    break
                length, number, stream = _HEADER.unpack_from(held, at)
                kind = _check_header(length, number)
                start = at + _HEADER.size
                if len(held) < start + length:
                    break
                at = start + length
                frames.append(Frame(kind, stream, bytes(view[start:at])))
        finally:
            view.release()
            del held[:at]

    def _skip_idle(self, at: int) -> int:
        """The place of the first byte that is not idle. Raises `ProtocolError` when no frame can start with it."""
        held = self._held
        if at < len(held) and held[at] == IDLE[0]:
            idle = _IDLE_RUN.match(held, at)
            assert idle is not None
            self.wasted += idle.end() - at
            at = idle.end()
        if at < len(held) and held[at] != 0:
            raise ProtocolError(f"a frame cannot start with byte {held[at]:#04x}")
        return at


def _check_header(length: int, number: int) -> Kind:
    if length > PAYLOAD_LIMIT:
        raise ProtocolError(f"a frame of {length} bytes is announced, at most {PAYLOAD_LIMIT} are allowed")
    kind = _KINDS.get(number)
    if kind is None:
        raise ProtocolError(f"there is no frame of kind {number}")
    return kind
