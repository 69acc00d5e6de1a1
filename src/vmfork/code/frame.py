"""What is said with the server of interpreters, without I/O: u32 length, u8 kind, then that many bytes, big-endian.

| kind | from the host          | kind | from the guest                                             |
| ---- | ---------------------- | ---- | ---------------------------------------------------------- |
| 0    | HELLO: token, name     | 1, 2 | STDOUT, STDERR: a piece of output                          |
| 1    | RUN: JSON              | 3    | RESULT: JSON, media type: content                          |
| 2    | INTERRUPT: seconds,    | 4    | DONE: JSON; the call has ended                             |
|      | name of another line   | 5    | FILES: JSON, the names of what the call has made           |
| 3    | AGAIN: code            | 6    | VALUE: text; the call has ended, and shows that            |

AGAIN is a RUN of other code in the same context, with the same environment. An interpreter answers it by itself, so an
INTERRUPT comes by another line: who reads the first is not known.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from vmfork.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = struct.Struct("!IB")
# As the server has it (python/vmfork_code/kinds.py).
VERSION = 2
MOST_REQUEST = 32 << 20
MOST_ANSWER = 32 << 20


class Ask(IntEnum):
    """What the host says."""

    HELLO = 0
    RUN = 1
    INTERRUPT = 2
    AGAIN = 3


class Answer(IntEnum):
    """What the guest says."""

    STDOUT = 1
    STDERR = 2
    RESULT = 3
    DONE = 4
    FILES = 5
    VALUE = 6


class Frame(NamedTuple):
    """One thing that the guest said."""

    kind: Answer
    payload: bytes


def encode_ask(kind: Ask, payload: bytes = b"") -> bytes:
    """A frame of the host's."""
    return _HEAD.pack(len(payload), kind) + payload


class AnswerParser:
    """Frames of the bytes of a guest, as they come. Raises `ProtocolError` for what no server sends."""

    def __init__(self) -> None:
        self._come = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. To be taken all before more is fed."""
        self._come += data
        while len(self._come) >= _HEAD.size:
            length, number = _HEAD.unpack_from(self._come)
            kind = _find_kind(number)
            if length > MOST_ANSWER:
                raise ProtocolError(f"an interpreter in the guest announced {length} bytes at once")
            end = _HEAD.size + length
            if len(self._come) < end:
                return
            payload = bytes(self._come[_HEAD.size : end])
            del self._come[:end]
            yield Frame(kind, payload)


def _find_kind(number: int) -> Answer:
    try:
        return Answer(number)
    except ValueError:
        raise ProtocolError(f"an interpreter in the guest sent a frame of kind {number}, which is none") from None


def read_json(payload: bytes, kind: type) -> Any:
    """What the payload holds, an object or a list. Raises `ProtocolError` for anything else."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"what an interpreter in the guest sent is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise ProtocolError(f"an interpreter in the guest sent {str(found)[:60]!r}")
    return found
