"""What is said between callers and nodes of a static list, as messages: data, of which only known values are made.

Python's own pickles would run what whoever sends them likes. So each class that may be carried is named here, and an
error travels as its class and its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from google.protobuf.message import DecodeError, EncodeError

from vmfork import errors
from vmfork.cluster.placement import Offer, Wanted
from vmfork.cluster.terms import Held, Machine, Order, Report
from vmfork.code.result import CodeFailure, CodeOutput, CodeResult
from vmfork.config import ProgramLimits
from vmfork.copied import Copied
from vmfork.errors import ClusterError, ConfigError, InternalError, VMForkError
from vmfork.hint import Hint
from vmfork.machine.decoding import Decoding
from vmfork.machine.event import ProgramEvent
from vmfork.machine.result import ExecResult
from vmfork.machine.use import Stats
from vmfork.network.policy import Allow
from vmfork.rpc import node_pb2 as pb
from vmfork.wire.given import PlacedFile
from vmfork.wire.message import DirEntry, FileStat

# An error's fields that are no data, such as what a caller had given, travel as they are shown.
_SHOWN = 200
_WHOLE = 1 << 63
_TEXT = "surrogatepass"
_HINT = "is it another vmfork?"
# What is nested too deeply: some protobufs find that when a value is put into another, some when all is written.
_UNSENDABLE = (DecodeError, EncodeError, ValueError, RecursionError)

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Held, Machine, Order, Report, Offer, Wanted, CodeFailure, CodeOutput, CodeResult, ProgramLimits, Copied,
        Decoding, ProgramEvent, ExecResult, Stats, FileStat, DirEntry,
    )
}  # fmt: skip
_ERRORS: dict[str, type[VMForkError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VMForkError)
}
_MADE: dict[int, Any] = {pb.Items.KIND_LIST: list, pb.Items.KIND_TUPLE: tuple, pb.Items.KIND_SET: frozenset}
_KINDS: dict[type, Any] = {**{kind: number for number, kind in _MADE.items()}, set: pb.Items.KIND_SET}


def write_request(verb: str, arguments: tuple[Any, ...]) -> pb.Request:
    """A call. Raises `ConfigError` for an argument that cannot be carried."""
    try:
        return pb.Request(verb=verb, arguments=[_write(each, shown=False) for each in arguments])
    except _UNSENDABLE as error:
        raise ConfigError("arguments", verb, f"cannot be sent to a node: {error}", hint="nest it less") from error


def read_request(request: pb.Request) -> tuple[str, list[Any]]:
    """Verb and arguments of the call. Raises `ConfigError` for what no caller sends."""
    try:
        return request.verb, [_read(each) for each in request.arguments]
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ConfigError("arguments", request.verb, f"no call of a node: {error}") from error


def write_answer(value: Any) -> pb.Answer:
    """What a call gave; one that cannot be carried is an error that says so."""
    try:
        answer = pb.Answer(value=_write(value, shown=False))
        answer.ByteSize()
    except (ConfigError, *_UNSENDABLE) as error:
        return write_error(InternalError(f"what a node gave cannot be sent: {error}"))
    return answer


def write_error(error: VMForkError) -> pb.Answer:
    """The error, with its fields."""
    kind = next(each for each in type(error).__mro__ if _ERRORS.get(each.__name__) is each)
    told = {name: found for name, found in vars(error).items() if not name.startswith("_")}
    named = {"args": error.args, **told}
    return pb.Answer(error=pb.Value(record=_write_record(kind.__name__, named, shown=True)))


def read_answer(answer: pb.Answer, *, of: str) -> Any:
    """What the call gave. Raises the error that it is, and `ClusterError`, naming `of`, for what no node sends."""
    try:
        if answer.WhichOneof("answer") == "value":
            return _read(answer.value)
        error = _read(answer.error)
    except (TypeError, ValueError, KeyError, OverflowError, DecodeError, VMForkError) as failed:
        raise ClusterError(f"node {of} answered what makes no sense: {failed}", hint=_HINT) from failed
    if not isinstance(error, VMForkError):
        raise ClusterError(f"node {of} answered what makes no sense", hint=_HINT)
    raise error


def _write(value: Any, *, shown: bool) -> pb.Value:
    """The message of `value`. What cannot be carried is `shown`, or a `ConfigError`."""
    if (plain := _find_plain(value)) is not None:
        return plain
    if isinstance(value, VMForkError):
        return write_error(value).error
    if (record := _find_record(value)) is not None:
        return pb.Value(record=_write_record(*record, shown=shown))
    if (kind := next((kind for kind in _KINDS if isinstance(value, kind)), None)) is not None:
        return pb.Value(items=pb.Items(kind=_KINDS[kind], values=[_write(each, shown=shown) for each in value]))
    if shown:
        return _write(repr(value)[:_SHOWN], shown=True)
    raise ConfigError("arguments", value, f"{type(value).__name__} cannot be sent to a node", hint="give plain values")


def _find_plain(value: Any) -> pb.Value | None:  # noqa: PLR0911 - one for each kind
    match value:
        case None:
            return pb.Value()
        case bool():
            return pb.Value(flag=value)
        case int() if -_WHOLE <= value < _WHOLE:
            return pb.Value(whole=value)
        case float():
            return pb.Value(real=value)
        case str() if not isinstance(value, Hint):
            return pb.Value(text=value.encode("utf-8", _TEXT))
        case bytes() | bytearray() | memoryview():
            return pb.Value(content=bytes(value))
    return None


def _find_record(value: Any) -> tuple[str, Mapping[str, Any]] | None:  # noqa: PLR0911 - as above
    name = type(value).__name__
    match value:
        case int():
            return "int", {"text": str(value)}
        case Hint():
            return name, {"text": str(value), "command": value.command}
        case PlacedFile():
            return name, value._asdict()
        case Allow():
            return name, {"entries": value.entries, "log_only": value.log_only}
        case Mapping():
            return "", value
    if is_dataclass(value) and _CLASSES.get(name) is type(value):
        return name, {each.name: getattr(value, each.name) for each in fields(value)}
    return None


def _write_record(name: str, told: Mapping[Any, Any], *, shown: bool) -> pb.Record:
    entries = [pb.Entry(key=_write(key, shown=shown), value=_write(value, shown=shown)) for key, value in told.items()]
    return pb.Record(name=name, entries=entries)


def _read(value: pb.Value) -> Any:
    match value.WhichOneof("kind"):
        case None:
            return None
        case "text":
            return value.text.decode("utf-8", _TEXT)
        case "items":
            return _MADE[value.items.kind](_read(each) for each in value.items.values)
        case "record":
            told = {_read(entry.key): _read(entry.value) for entry in value.record.entries}
            return _make(value.record.name, told) if value.record.name else told
        case kind:
            return getattr(value, kind)


def _make(name: str, told: dict[Any, Any]) -> Any:
    if name in _ERRORS:
        return _make_error(_ERRORS[name], told)
    if name == "int":
        return int(told["text"])
    if name == "Hint":
        return Hint(told["text"], told["command"])
    if name == "PlacedFile":
        return PlacedFile(**told)
    if name == "Allow":
        return Allow(*told["entries"], log_only=told["log_only"])
    kind = _CLASSES[name]
    known = {each.name: each for each in fields(kind)}
    missing = [
        each.name
        for each in known.values()
        if each.name not in told and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{name} has no {missing[0]}")
    # What a newer vmfork says besides is left out.
    return kind(**{field: found for field, found in told.items() if field in known})


def _make_error(kind: type[VMForkError], told: dict[str, Any]) -> VMForkError:
    error = kind.__new__(kind)
    VMForkError.__init__(error, str(told["message"]))
    error.args = tuple(told.pop("args"))
    # Not what its class has for all: a node could put other things in the place of its methods.
    vars(error).update({name: found for name, found in told.items() if not hasattr(kind, name)})
    return error
