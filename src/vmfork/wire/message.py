"""What requests and answers say, as typed values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

from vmfork.errors import ProtocolError
from vmfork.units import MIB
from vmfork.wire.frame import (
    FIRST_CREDIT,
    HEADER_SIZE,
    MOST_CREDIT,
    PAYLOAD_LIMIT,
    PROTOCOL,
    SUPPORTED_PROTOCOLS,
    BrokerOpcode,
    Opcode,
    decode_fields,
    encode_fields,
    encode_request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmfork.wire.command import Command, Window

FileType = Literal["file", "dir", "link", "other"]
EndKind = Literal["exit", "signal"]
Exceeded = Literal["", "cpu", "memory"]
# What a greeting can leave of the client before: its programs, and what programs of the guest ask.
Kept = Literal["programs", "asks"]


class _Quantity(NamedTuple):
    """What a number of the agent's is, and its range: a guest may say anything, such as an exit status of 10**20."""

    name: str
    least: int
    most: int
    base: int = 10


_I64 = 2**63 - 1
_ERRNO = _Quantity("error number", 0, 4095)  # MAX_ERRNO, linux/err.h
_PROTOCOL = _Quantity("protocol", 0, 2**31 - 1)
_PID = _Quantity("process id", 1, 1 << 22)  # PID_MAX_LIMIT, linux/threads.h
_STATUS = _Quantity("exit status", 0, 255)
_SIGNAL = _Quantity("signal", 1, 64)
_DURATION = _Quantity("duration in ns", 0, _I64)
_SIZE = _Quantity("size", 0, _I64)
_MODE = _Quantity("mode", 0, 0o7777, base=8)
_TIME = _Quantity("time in ns", -_I64 - 1, _I64)
_OWNER = _Quantity("user or group", 0, 2**32 - 1)
_PAIR = _Quantity("pair", 0, 2**32 - 1)
_COUNT = _Quantity("number of entries", 0, 2**31 - 1)
_CALLER = _Quantity("number of a connection", 1, 2**32 - 1)
_WINDOW = _Quantity("window", FIRST_CREDIT, MOST_CREDIT)
_OF_FILES = {"mode": _MODE, "time": _TIME, "owner": _OWNER, "size": _SIZE}
_DECIMAL, _OCTAL = re.compile(rb"-?[0-9]{1,20}"), re.compile(rb"[0-7]{1,8}")
_SHOWN = 40  # bytes of what is no number, in a message
_MOST_NAME, _MOST_WORDS = 255, 1000  # bytes of what people are shown: a guest may fill a frame with them

_NS_PER_S = 1_000_000_000
_SPOKEN = ", ".join(map(str, sorted(SUPPORTED_PROTOCOLS)))

# An item beside those to be adopted, which asks what the agent speaks. Before `FIRST_WITH_ROOM` it knows no such item.
PROTOCOL_ITEM = ("protocol", b"%d" % PROTOCOL)

# An EXEC with this many bytes of arguments and variables still has room in its frame for a folder and a user.
LISTS_IN_REQUEST = PAYLOAD_LIMIT - 16 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """An ERROR: its code (an `ErrorCode`, as far as it is known), the agent's words, the guest's errno or 0."""

    code: str
    message: str
    errno: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who answers: `boot_id` is the guest kernel's."""

    protocol: int
    agent_version: str
    boot_id: str
    capabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class ExecStatus:
    """How a process ended: with an exit status, or by a signal. `duration_s` is the guest's measure, as all here."""

    kind: EndKind
    number: int
    duration_s: float
    cpu_s: float | None = None
    """Processor time, of the program and all it waited for; `None` where the agent is too old to tell."""
    peak_memory_bytes: int | None = None
    """The most memory it had: its largest process, or, with limits, all of it together."""
    exceeded: Exceeded = ""
    """The limit it was killed for: `cpu`, `memory`, or none."""

    @property
    def exit_code(self) -> int:
        """As a shell reports it: the exit status, or 128 and the signal's number."""
        return self.number if self.kind == "exit" else 128 + self.number


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file in the guest, links not followed. `target` is where a link points, else empty."""

    type: FileType
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    target: str


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One name in a folder of the guest."""

    name: str
    type: FileType
    mode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item: `ok` or an error code, and what the guest shows for it."""

    item: str
    outcome: str
    evidence: bytes


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The guest's clocks, read between two moments of the host's wall clock. All in ns; wall clocks since 1970."""

    wall_ns: int
    monotonic_ns: int
    sent_ns: int
    received_ns: int


def encode_text(text: str) -> bytes:
    """As file names and arguments are encoded: what `os.fsdecode` made comes back as it was."""
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    """The opposite of `encode_text`."""
    return data.decode("utf-8", "surrogateescape")


def _number(value: int) -> bytes:
    return b"%d" % value


def _options(chosen: Mapping[str, bool | int | None]) -> bytes:
    """The names of those that are chosen; a number stands behind its name."""
    said = (name if value is True else f"{name}={value}" for name, value in chosen.items() if value)
    return ",".join(said).encode()


def hello_request(stream: int, nonce: bytes, protocol: int = PROTOCOL, *, keep: Sequence[Kept] = ()) -> bytes:
    """HELLO. To keep something is for an agent that knows LEFT."""
    return encode_request(stream, Opcode.HELLO, nonce, _number(protocol), *([",".join(keep).encode()] if keep else []))


def exec_request(stream: int, command: Command, *, contained: bool = False) -> tuple[bytes, bytes]:
    """EXEC, and the arguments and variables when they are too long for it: they go over a channel of their own.

    SIGKILL ends all that a `contained` program started. An agent before `FIRST_WITH_ROOM` knows neither, one before
    `FIRST_WITH_TERMINALS` neither windows nor limits.
    """
    arguments = map(encode_text, command.argv)
    variables = (encode_text(f"{name}={value}") for name, value in command.env.items())
    lists = encode_fields(*arguments, *variables)
    limits = command.limits
    options: dict[str, bool | int | None] = {
        "stdin": command.stdin,
        "clean-env": command.clean_env,
        "contained": contained,
        "memory": limits.memory_mib and limits.memory_mib * MIB,
        "processes": limits.processes,
        "cpu-ms": None if limits.cpu_s is None else math.ceil(limits.cpu_s * 1000),
    }
    if command.window is not None:
        options |= {"terminal": True, **command.window._asdict()}
    place = encode_text(command.cwd), encode_text(command.user), _number(len(command.argv))
    if len(lists) <= LISTS_IN_REQUEST:
        return encode_request(stream, Opcode.EXEC, _options(options), *place, behind=lists), b""
    return encode_request(stream, Opcode.EXEC, _options({**options, "arguments": True}), *place), lists


def background_request(stream: int, number: int, command: Command) -> bytes | None:
    """BACKGROUND, which a broker takes; `None` when the arguments are too long for one request."""
    request, lists = exec_request(stream, command)
    fields = request[HEADER_SIZE + 1 :]
    return None if lists else encode_request(stream, BrokerOpcode.BACKGROUND, _number(number), behind=fields)


def output_request(stream: int, number: int, from_out: int, from_err: int) -> bytes:
    """OUTPUT of program `number`, from these bytes on."""
    return encode_request(stream, BrokerOpcode.OUTPUT, *map(_number, (number, from_out, from_err)))


def signal_request(stream: int, number: int, signal: int) -> bytes:
    """SIGNAL for program `number`."""
    return encode_request(stream, BrokerOpcode.SIGNAL, _number(number), _number(signal))


def keep_request(stream: int, number: int, left: int) -> bytes:
    """KEEP: the program that was left under the number `left` is program `number`."""
    return encode_request(stream, BrokerOpcode.KEEP, _number(number), _number(left))


def take_request(stream: int, left: int) -> bytes:
    """TAKE of the program that was left under that number."""
    return encode_request(stream, Opcode.TAKE, _number(left))


def answer_request(stream: int, number: int, answer: bytes) -> bytes:
    """ANSWER for the program that asked under that number."""
    return encode_request(stream, Opcode.ANSWER, _number(number), answer)


def kill_request(stream: int, target: int, signal: int) -> bytes:
    """KILL of what runs on the stream `target`."""
    return encode_request(stream, Opcode.KILL, _number(target), _number(signal))


def resize_request(stream: int, target: int, window: Window) -> bytes:
    """RESIZE of the terminal of what runs on the stream `target`."""
    return encode_request(stream, Opcode.RESIZE, _number(target), _number(window.rows), _number(window.columns))


def read_request(stream: int, path: str, offset: int, length: int | None) -> bytes:
    """READ; without a length to the end."""
    limit = b"" if length is None else _number(length)
    return encode_request(stream, Opcode.READ, encode_text(path), _number(offset), limit)


def write_request(
    stream: int,
    path: str,
    mode: int | None,
    *,
    append: bool,
    parents: bool,
    exclusive: bool,
    size: int | None = None,
) -> bytes:
    """WRITE. Without a mode the file keeps the one it has; `size` is how many bytes will be sent.

    An agent before `FIRST_WITH_ROOM` needs a mode, and takes no size.
    """
    options = _options({"append": append, "parents": parents, "exclusive": exclusive})
    fields = (encode_text(path), b"" if mode is None else b"%o" % mode, options)
    return encode_request(stream, Opcode.WRITE, *fields, *(() if size is None else (_number(size),)))


def stat_request(stream: int, path: str) -> bytes:
    """STAT."""
    return encode_request(stream, Opcode.STAT, encode_text(path))


def list_request(stream: int, path: str) -> bytes:
    """LIST."""
    return encode_request(stream, Opcode.LIST, encode_text(path))


def remove_request(stream: int, path: str, *, recursive: bool) -> bytes:
    """REMOVE."""
    return encode_request(stream, Opcode.REMOVE, encode_text(path), _options({"recursive": recursive}))


def make_dir_request(stream: int, path: str, mode: int, *, parents: bool) -> bytes:
    """MKDIR."""
    return encode_request(stream, Opcode.MKDIR, encode_text(path), b"%o" % mode, _options({"parents": parents}))


def put_request(stream: int, path: str, *, parents: bool, archive: bool, size: int) -> bytes:
    """PUT; `size` is how many bytes of content will be sent, 0 where that is not known."""
    options = _options({"parents": parents, "archive": archive})
    return encode_request(stream, Opcode.PUT, encode_text(path), options, _number(size))


def watch_request(stream: int, path: str, *, recursive: bool) -> bytes:
    """Asks to be told what happens to the file or folder, or to all below it."""
    return encode_request(stream, Opcode.WATCH, encode_text(path), _options({"recursive": recursive}))


def get_request(stream: int, path: str, *, names: bool = False) -> bytes:
    """GET; with `names` no content comes."""
    return encode_request(stream, Opcode.GET, encode_text(path), _options({"names": names}))


def move_request(stream: int, path: str, to: str) -> bytes:
    """MOVE."""
    return encode_request(stream, Opcode.MOVE, encode_text(path), encode_text(to))


def change_request(stream: int, path: str, *, mode: int | None = None, user: str = "", group: str = "") -> bytes:
    """CHANGE; what is not given stays as it is."""
    octal = b"" if mode is None else b"%o" % mode
    return encode_request(stream, Opcode.CHANGE, encode_text(path), octal, encode_text(user), encode_text(group))


def connect_request(stream: int, port: int, window: int = 0) -> bytes:
    """CONNECT. `window` is how much is to be under way to the port; what every stream has where none is given."""
    return encode_request(stream, Opcode.CONNECT, _number(port), *_window(window))


def connect_path_request(stream: int, path: str) -> bytes:
    """CONNECT to a Unix socket."""
    return encode_request(stream, Opcode.CONNECT, path.encode())


def listen_request(stream: int, port: int, address: str = "") -> bytes:
    """LISTEN, at 127.0.0.1 where no address of the loopback is given."""
    return encode_request(stream, Opcode.LISTEN, _number(port), *([address.encode()] if address else []))


def attach_request(stream: int, listener: int, number: int, window: int = 0) -> bytes:
    """ATTACH of the connection `number` that waits on the stream `listener`. `window` is as that of CONNECT."""
    return encode_request(stream, Opcode.ATTACH, _number(listener), _number(number), *_window(window))


def _window(window: int) -> list[bytes]:
    return [_number(window)] if window else []


def adopt_request(stream: int, items: Iterable[tuple[str, bytes]]) -> bytes:
    """ADOPT."""
    return encode_request(stream, Opcode.ADOPT, *(part for key, value in items for part in (key.encode(), value)))


def clock_request(stream: int, wall_ns: int | None) -> bytes:
    """CLOCK; without a time it only reads."""
    return encode_request(stream, Opcode.CLOCK, b"" if wall_ns is None else _number(wall_ns))


def net_request(stream: int, mac: str, *where: str) -> bytes:
    """NET: the card has this Ethernet address, and is up at an address, with its prefix and a gateway, if any."""
    return encode_request(stream, Opcode.NET, *map(str.encode, (mac, *where)))


def notify_request(stream: int, limit_s: float) -> bytes:
    """NOTIFY; the limit goes out in whole milliseconds, at least one."""
    return encode_request(stream, Opcode.NOTIFY, _number(max(1, math.ceil(limit_s * 1000))))


def _some_fields(payload: bytes, counts: tuple[int, ...], what: str) -> tuple[bytes, ...]:
    # A frame has room for 65,536 empty fields, which take 10 ms to tell apart.
    fields = decode_fields(payload, most=max(counts))
    if len(fields) not in counts:
        raise ProtocolError(f"{what} has {' or '.join(map(str, counts))} fields, this one {len(fields)}")
    return fields


def _fields(payload: bytes, count: int, what: str) -> tuple[bytes, ...]:
    return _some_fields(payload, (count,), what)


def _int(field: bytes, what: _Quantity) -> int:
    """The number in `field`. Raises `ProtocolError` when it is none, or out of the range that Linux has for it."""
    digits = _OCTAL if what.base == 8 else _DECIMAL
    number = int(field, what.base) if digits.fullmatch(field) else None
    if number is None or not what.least <= number <= what.most:
        raise ProtocolError(f"{field[:_SHOWN]!r} is no {what.name}")
    return number


def parse_number(field: bytes, kind: Literal["mode", "time", "owner", "size"]) -> int:
    """The number of a file in `field`. Raises `ProtocolError` when it is none, or out of Linux's range for it."""
    return _int(field, _OF_FILES[kind])


def _words(field: bytes, most: int = _MOST_NAME) -> str:
    """The text in `field`, as far as it is shown."""
    return field[:most].decode(errors="replace")


# The same text for all: a list of a million names would have as many.
_FILE_TYPES = {name.encode(): cast(FileType, name) for name in get_args(FileType)}


def _file_type(field: bytes) -> FileType:
    if field not in _FILE_TYPES:
        raise ProtocolError(f"{_words(field)!r} is not a type of file")
    return _FILE_TYPES[field]


def parse_error(payload: bytes) -> Failure:
    """What an ERROR frame says."""
    code, message, errno = _fields(payload, 3, "an error")
    return Failure(_words(code), _words(message, _MOST_WORDS), _int(errno, _ERRNO))


def parse_hello(payload: bytes) -> Hello:
    """The answer to HELLO. Raises `ProtocolError`, naming both numbers, when the agent speaks another protocol.

    Only the first field is taken from a protocol that is not known: the others may mean something else in it.
    """
    fields = decode_fields(payload)
    protocol = _int(fields[0], _PROTOCOL) if fields else 0
    if protocol not in SUPPORTED_PROTOCOLS:
        raise ProtocolError(
            f"the agent in the guest speaks protocol {protocol}, this vmfork speaks {_SPOKEN}",
            hint="build the image and its templates again with this vmfork",
        )
    _, version, boot_id, capabilities = _fields(payload, 4, "the answer to hello")
    names = frozenset(capabilities.decode(errors="replace").split(",")) - {""}
    return Hello(protocol, _words(version), _words(boot_id), names)


def parse_started(payload: bytes) -> int:
    """The pid in the EVENT `started`."""
    name, pid = _fields(payload, 2, "an event")
    if name != b"started":
        raise ProtocolError(f"there is no event {name[:_SHOWN]!r}")
    return _int(pid, _PID)


class LeftProgram(NamedTuple):
    """A program whose client left it: the agent's number for it, and the beginning of its command line."""

    number: int
    pid: int
    has_stdin: bool
    has_terminal: bool
    argv: tuple[str, ...]


def parse_left(payload: bytes) -> tuple[LeftProgram, ...]:
    """The answer to LEFT."""
    fields = iter(decode_fields(payload))
    found = []
    for number in fields:
        rest = tuple(islice(fields, 3))
        if len(rest) != 3:
            raise ProtocolError("a program that was left is cut off")
        pid, way, argc = rest
        argv = tuple(islice(fields, count := _int(argc, _COUNT)))
        if len(argv) != count or way not in (b"", b"stdin", b"terminal"):
            raise ProtocolError("a program that was left cannot be read")
        names = tuple(map(decode_text, argv))
        found.append(LeftProgram(_int(number, _SIZE), _int(pid, _PID), way == b"stdin", way == b"terminal", names))
    return tuple(found)


class Asked(NamedTuple):
    """A question of a program of the guest; `None` when the program is gone."""

    number: int
    pid: int = 0
    question: bytes | None = None


def parse_asked(payload: bytes) -> Asked | None:
    """The EVENT `asked` or `gone`; `None` for `serving`."""
    name, *rest = _some_fields(payload, (1, 2, 4), "the event of who asks")
    if (name, len(rest)) == (b"asked", 3):
        return Asked(_int(rest[0], _CALLER), _int(rest[1], _PID), rest[2])
    if (name, len(rest)) == (b"gone", 1):
        return Asked(_int(rest[0], _CALLER))
    if (name, len(rest)) != (b"serving", 0):
        raise ProtocolError(f"there is no event {name[:_SHOWN]!r} of who asks")
    return None


def parse_connected(payload: bytes) -> int:
    """The window in the EVENT `connected`: what may be under way to the port once all credit has come."""
    name, *window = _some_fields(payload, (1, 2), "the event of a connection")
    if name != b"connected":
        raise ProtocolError(f"there is no event {name[:_SHOWN]!r} of a connection")
    return _int(window[0], _WINDOW) if window else FIRST_CREDIT


def parse_caller(payload: bytes) -> int | None:
    """The number in the EVENT `connection`; `None` for `listening`."""
    name, *number = _some_fields(payload, (1, 2), "the event of a listener")
    if (name, len(number)) not in ((b"listening", 0), (b"connection", 1)):
        raise ProtocolError(f"there is no event {name[:_SHOWN]!r} of a listener")
    return _int(number[0], _CALLER) if number else None


def parse_exec(payload: bytes) -> ExecStatus:
    """The answer to EXEC; what the program used is missing in that of an agent before `FIRST_WITH_TERMINALS`."""
    kind, number, duration_ns, *used = _some_fields(payload, (3, 6), "the end of a process")
    name = _words(kind)
    if name not in get_args(EndKind):
        raise ProtocolError(f"a process does not end by {name!r}")
    return ExecStatus(
        cast(EndKind, name),
        _int(number, _STATUS if name == "exit" else _SIGNAL),
        _int(duration_ns, _DURATION) / _NS_PER_S,
        *(_used(*used) if used else ()),
    )


def _used(cpu_ns: bytes, peak: bytes, limit: bytes) -> tuple[float, int, Exceeded]:
    exceeded = _words(limit)
    if exceeded not in get_args(Exceeded):
        raise ProtocolError(f"there is no limit {exceeded!r}")
    return _int(cpu_ns, _DURATION) / _NS_PER_S, _int(peak, _SIZE), cast(Exceeded, exceeded)


# Fields in the answer to STATUS: names and counts.
_MOST_COUNTS = 64


class KeptOutput(NamedTuple):
    """What a broker has of a program: each stream's piece with its place, and how it ended."""

    from_out: int
    stdout: bytes
    from_err: int
    stderr: bytes
    end: ExecStatus | None


def parse_output(payload: bytes) -> KeptOutput:
    """The answer to OUTPUT."""
    from_out, stdout, from_err, stderr, end = _fields(payload, 5, "a program's output")
    places = _int(from_out, _SIZE), _int(from_err, _SIZE)
    return KeptOutput(places[0], stdout, places[1], stderr, parse_exec(end) if end else None)


def parse_counts(payload: bytes) -> dict[str, int]:
    """The answer to STATUS: what a broker counts, by name."""
    told = decode_fields(payload, most=_MOST_COUNTS)
    if len(told) % 2:
        raise ProtocolError(f"counts have two fields each, these are {len(told)}")
    return {_words(name): _int(count, _SIZE) for name, count in zip(told[::2], told[1::2], strict=True)}


def parse_read(payload: bytes) -> tuple[int, int]:
    """The answer to READ: the number of bytes sent, and the file's mode."""
    size, mode = _fields(payload, 2, "the answer to read")
    return _int(size, _SIZE), _int(mode, _MODE)


def parse_copied(payload: bytes) -> tuple[int, int]:
    """The answer to PUT and GET: the numbers of entries and of bytes of content."""
    entries, size = _fields(payload, 2, "the end of a copy")
    return _int(entries, _COUNT), _int(size, _SIZE)


def parse_stat(payload: bytes) -> FileStat:
    """The answer to STAT."""
    kind, mode, size, mtime_ns, uid, gid, target = _fields(payload, 7, "the answer to stat")
    return FileStat(
        type=_file_type(kind),
        mode=_int(mode, _MODE),
        size=_int(size, _SIZE),
        mtime_ns=_int(mtime_ns, _TIME),
        uid=_int(uid, _OWNER),
        gid=_int(gid, _OWNER),
        target=decode_text(target),
    )


def parse_pair(field: bytes) -> int:
    """What both halves of a move have in common."""
    return _int(field, _PAIR)


def parse_count(payload: bytes) -> int:
    """The answer to LIST: how many entries it sent."""
    return _int(_fields(payload, 1, "the answer to list")[0], _COUNT)


def parse_entry(fields: Sequence[bytes]) -> DirEntry:
    """One entry that LIST sent."""
    name, kind, mode, size, mtime_ns = fields
    return DirEntry(decode_text(name), _file_type(kind), _int(mode, _MODE), _int(size, _SIZE), _int(mtime_ns, _TIME))


def parse_outcomes(payload: bytes) -> tuple[ItemOutcome, ...]:
    """The answer to ADOPT, to QUIESCE and to NOTIFY."""
    fields = decode_fields(payload)
    if len(fields) % 3:
        raise ProtocolError(f"outcomes have three fields each, these are {len(fields)}")
    triples = [fields[at : at + 3] for at in range(0, len(fields), 3)]
    return tuple(ItemOutcome(_words(item), _words(outcome), evidence) for item, outcome, evidence in triples)


def parse_protocol(outcome: ItemOutcome) -> int | None:
    """The protocol in the outcome of `PROTOCOL_ITEM`; `None` for an agent that does not know the item."""
    return _int(outcome.evidence, _PROTOCOL) if outcome.outcome == "ok" else None


def parse_clock(payload: bytes) -> tuple[int, int]:
    """The answer to CLOCK: wall clock and monotonic clock in ns."""
    wall_ns, monotonic_ns = _fields(payload, 2, "the answer to clock")
    return _int(wall_ns, _TIME), _int(monotonic_ns, _DURATION)


class CardReading(NamedTuple):
    """What the guest shows of its network card: the interface, 12 hex digits, and an address or nothing."""

    interface: str
    mac: str
    address: str


def parse_card(payload: bytes) -> CardReading:
    """The answer to NET."""
    return CardReading(*map(_words, _fields(payload, 3, "the answer about the network card")))


class DiskReading(NamedTuple):
    """What the guest shows of its disk: what its kernel calls it, and its size; 0 where that is not known."""

    name: str
    size_bytes: int


def parse_disk(payload: bytes) -> DiskReading:
    """The answer to DISK."""
    name, size_bytes = _fields(payload, 2, "the answer about the disk")
    return DiskReading(_words(name), _int(size_bytes, _SIZE))
