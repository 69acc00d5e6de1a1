"""What is said with servers: all of it comes back as it was, and nothing else is made of what comes."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_errors import SAMPLES
from vmfork.cluster.carried import read_answer, read_request, write_answer, write_error, write_request
from vmfork.cluster.placement import Offer, Wanted
from vmfork.cluster.terms import Held, Machine, Order, Report
from vmfork.code.result import CodeFailure, CodeOutput, CodeResult
from vmfork.config import ProgramLimits
from vmfork.copied import Copied
from vmfork.errors import Closed, ClusterError, ConfigError, InternalError, NodeLost, VMForkError
from vmfork.hint import Hint
from vmfork.machine.event import ProgramEvent
from vmfork.machine.result import ExecResult
from vmfork.machine.use import Stats
from vmfork.network.policy import Allow
from vmfork.rpc import node_pb2 as pb
from vmfork.wire.given import PlacedFile
from vmfork.wire.message import DirEntry, FileStat

WANTED = Wanted(digest="d", traits={"accel": "tcg"}, agent_protocol=7, share_mib=100, layers={"a": 1 << 40})
RESULT = ExecResult(argv=("a", "\udcff"), exit_code=3, duration_s=0.5, stdout_bytes=b"\0\xff", cpu_s=0.25)
VALUES = [
    None, True, False, 0, -1, 1 << 63, -(1 << 63), 10**40, 0.5, math.inf, "", "ä\udcff\0", b"", b"\0\xff", [], (), {},
    frozenset({"a", "b"}), {"a": [1, (2, b"3")], "": None},
    WANTED,
    Report(
        offer=Offer(name="a", labels={"z": "west"}, emulators=frozenset({"7.2"}), protocols=frozenset({7}), load=1.5),
        version="1", held=(Held(name="py", created_at="now", wanted=WANTED),),
        machines=(Machine(id="1", node="a", template="py", key="k", lasts=True),), asked=("b",),
    ),
    Order(
        template="py", digest="d", key="k", client="c", sources=("a:1",), wait_s=2.0,
        options={"files": {"/x": PlacedFile(b"x", 0o644)}, "network": Allow("a.example:443", log_only=True)},
    ),
    RESULT, ProgramEvent("stdout", b"x", "x"), ProgramEvent("end", result=RESULT), ProgramLimits(memory_mib=5),
    Copied(files=2, skipped=("/dev/x",)),
    Stats(
        cpu_s=0.5, own_bytes=1, shared_bytes=2, siblings_bytes=3, layer_bytes=4, sent_bytes=5, received_bytes=6,
        programs=7,
    ),
    FileStat(type="link", mode=0o777, size=3, mtime_ns=-1, uid=1, gid=2, target="b\udcff"),
    [DirEntry(name="a", type="dir", mode=0o755, size=0, mtime_ns=1)],
    CodeResult(value="1", results=(CodeOutput({"image/png": b"\0", "application/json": [1]}),), files={"a": b"b"}),
    CodeResult(error=CodeFailure("ValueError", "no", "trace")),
]  # fmt: skip


def carry(value):
    """As it arrives, bytes having been in between."""
    return read_answer(pb.Answer.FromString(write_answer(value).SerializeToString()), of="a:1")


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back(value) -> None:
    assert carry(value) == value
    assert type(carry(value)) is type(value)


def test_a_call_comes_with_its_arguments() -> None:
    request = pb.Request.FromString(write_request("exec", ("1", ["true"], {"env": None})).SerializeToString())
    assert read_request(request) == ("exec", ["1", ["true"], {"env": None}])


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_an_error_comes_back_with_its_fields(kind) -> None:
    error = SAMPLES[kind]
    with pytest.raises(kind) as came:
        read_answer(pb.Answer.FromString(write_error(error).SerializeToString()), of="a:1")
    twin = came.value
    assert (type(twin), str(twin), twin.hint, twin.details()) == (kind, str(error), error.hint, error.details())
    plain = {name: told for name, told in vars(error).items() if isinstance(told, (str, int, bytes, tuple))}
    assert {name: told for name, told in vars(twin).items() if name in plain} == plain


def test_an_error_keeps_its_hint_for_commands_and_what_else_went_wrong() -> None:
    error = Closed("it")
    error.hint = Hint("call it", "run it")
    error.siblings = (NodeLost("a:1", ["1"]),)
    with pytest.raises(Closed) as came:
        read_answer(write_error(error), of="a:1")
    assert came.value.hint.command == "run it"
    assert came.value.siblings[0].machines == ("1",)


def test_errors_are_carried_among_values() -> None:
    machine = Machine(id="1", node="a", template="py")
    first, second = carry([machine, NodeLost("a:1", ["1"])])
    assert first == machine
    assert (type(second), second.machines) == (NodeLost, ("1",))


def test_an_error_about_something_that_is_no_data_shows_it() -> None:
    with pytest.raises(ConfigError) as came:
        read_answer(write_error(ConfigError("field", object(), "is wrong")), of="a:1")
    assert came.value.value.startswith("<object object at")


def test_what_is_no_data_is_not_sent() -> None:
    with pytest.raises(ConfigError, match="object cannot be sent"):
        write_request("exec", (object(),))
    with pytest.raises(InternalError, match="cannot be sent"):
        carry(object())


class Disguised(VMForkError):
    code = "disguised"


def test_an_error_that_callers_do_not_know_is_the_nearest_that_they_do() -> None:
    with pytest.raises(VMForkError, match="odd") as came:
        read_answer(write_error(Disguised("odd")), of="a:1")
    assert type(came.value) is VMForkError


def record(name: str, **told: str) -> pb.Value:
    entries = [
        pb.Entry(key=pb.Value(text=key.encode()), value=pb.Value(text=value.encode())) for key, value in told.items()
    ]
    return pb.Value(record=pb.Record(name=name, entries=entries))


@pytest.mark.parametrize(
    "answer",
    [
        pb.Answer(),
        pb.Answer(value=record("Popen", args="true")),
        pb.Answer(value=record("Template")),
        pb.Answer(value=record("Machine", id="1")),
        pb.Answer(value=record("Allow", entries="x")),
        pb.Answer(value=record("int", text="x")),
        pb.Answer(value=pb.Value(text=b"\xff")),
        pb.Answer(value=pb.Value(items=pb.Items(kind=9))),
        pb.Answer(error=pb.Value(text=b"no record")),
        pb.Answer(error=record("NodeLost")),
        pb.Answer(error=record("SystemExit", message="x")),
    ],
    ids=str,
)
def test_what_no_node_says_is_refused(answer) -> None:
    with pytest.raises(ClusterError, match="makes no sense") as refused:
        read_answer(answer, of="a:1")
    assert "a:1" in str(refused.value)


def test_an_error_from_elsewhere_replaces_no_method() -> None:
    value = write_error(NodeLost("a:1")).error
    value.record.entries.append(pb.Entry(key=pb.Value(text=b"details"), value=pb.Value(text=b"x")))
    with pytest.raises(NodeLost) as came:
        read_answer(pb.Answer(error=value), of="a:1")
    assert came.value.details() == ""


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data) -> None:
    try:
        answer = pb.Answer.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own border
        return
    with suppress(VMForkError):
        read_answer(answer, of="a:1")


def test_what_is_nested_too_deeply_is_said_to_be() -> None:
    deep: list = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InternalError, match="cannot be sent"):
        carry(deep)
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="cannot be sent"):
        write_request("exec", (deep,))
