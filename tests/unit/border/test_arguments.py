"""Whatever a caller gives for whatever parameter is taken, or refused by its name. The signatures are walked."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Literal, get_origin, get_type_hints

import pytest

from vmfork import aio
from vmfork.border.arguments import CHECKS, Arguments
from vmfork.errors import ConfigError
from vmfork.progress import ignore_progress
from vmfork.units import MAX_DURATION_S

_NO_TEXT = (5, b"x", None, Path("/x"), ["x"])
_NO_FLAG = (1, "yes", None)
_NO_WHOLE = ("5", "1G", 1.5, True, -1, 10**30, float("nan"), [1])
_NO_SECONDS = ("5", True, -1, -0.5, 10**30, 10**400, float("nan"), float("inf"), [1])
_NO_PATH = (5, b"/x", ["x"], None)
_NO_CONTENT = (5, 1.5, ["x"], {"a": 1})
_NO_TABLE = (5, "x", [("a", "b")])
_NO_LIST = ("true", b"true", 5, None, {"true": 1}, [5], [None], [b"x"])
_NO_CHOICE = (5, None, "x", ["q35"])

# By annotation: the values that a parameter of that kind cannot have.
WRONG = {
    "str": _NO_TEXT,
    "bool": _NO_FLAG,
    "int": (*_NO_WHOLE, None),
    "int | None": _NO_WHOLE,
    "int | str": (*(_NO for _NO in (1.5, True, None, b"INT", [2])), 0, 65, "NOPE", "SIG", "", "9"),
    "tuple[int, int] | None": (
        5,
        "24x80",
        b"ab",
        (24,),
        (24, 80, 1),
        (0, 80),
        (24, -1),
        ("24", "80"),
        (24, 10**9),
        [True, 1],
    ),
    "ProgramLimits | None": (5, "x", {"cpu_s": 1}),
    "Size | None": (1.5, True, b"2G", "much", "", "-1", -1, ["2G"]),
    "float": (*_NO_SECONDS, None),
    "float | None": _NO_SECONDS,
    "GuestPath": _NO_PATH,
    "HostPath": _NO_PATH,
    "str | None": (5, b"x", Path("/x"), ["x"]),
    "bytes": (*_NO_CONTENT, None),
    "bytes | str": (*_NO_CONTENT, None),
    "bytes | str | None": _NO_CONTENT,
    "Mapping[str, str] | None": (*_NO_TABLE, {"A": 5}, {5: "a"}, {"A": None}),
    "Mapping[str, Any] | None": (*_NO_TABLE, {}),
    "str | Mapping[str, Any]": (5, b"x", None, ["x"], {}),
    "Mapping[str, GivenFile] | None": (*_NO_TABLE, {"/a": 5}, {5: "a"}, {"a": "not absolute"}, {"/a": Path("/none")}),
    "Sequence[str]": _NO_LIST,
    "Sequence[GuestPath]": _NO_LIST,
    "Sequence[Mapping[str, Any]]": ("x", 5, None, {"run": "x"}, ["x"], [5], [{"rum": "x"}], [{}], [{"run": 5}]),
    "Mapping[str, HostPath] | None": (*_NO_TABLE, {"/a": 5}, {5: "a"}, {"/a": None}, {"/a": ["x"]}),
    "Recipe | HostPath | None": (5, b"x", ["x"], {"steps": []}, "/none.toml"),
    "Sequence[Probe]": ("x", 5, None, ["x"], [5]),
    "OpenFile": ("x", None, -1, 1 << 40, b"x"),
    "ProgressListener": (5, "x", None),
    "OutputListener | None": (5, "x", [print]),
    "Places | None": (5, "/x", Path("/x")),
    "Network": (5, "x", None),
    "NetworkPolicy": (5, "x", None, ["none"], b"all"),
    "CardChoice": (5, "x", None, ["none"], b"open"),
    "LeftPrograms": (5, "x", None, ["keep"], b"end"),
    "NetworkPolicy | None": (5, "x", ["none"], b"all"),
    "Checkpoint | str": (5, None, b"x", ["x"]),
    "VMConfig | None": (5, "x", {"cpus": 1}),
    "ImageConfig | None": (5, "x", {"bare": True}),
    "FactoryConfig | None": (5, "x", {"cache": 1}),
    "VM | Template": (5, "x", None),
    "VMHandle | str": (5, None, b"x", Path("/x")),
    # Of the configurations.
    "VMConfig": (5, "x", None, {"cpus": 1}),
    "Path": (5, b"/x", None, "not/absolute"),
    "tuple[str, ...]": ("true", b"true", 5, None, [5]),
}
GOOD = {
    "str": "x",
    "Sequence[GuestPath]": ["true"],
    "GuestPath": "/x",
    "HostPath": "/x",
    "bytes | str": b"",
    "bytes": b"",
    "int": 1,
    "OpenFile": 0,
}

METHODS = {
    f"{name}.{key}": (kind, key)
    for name in ("Checkpoint", "Factory", "GuestProcess", "Template", "VM", "Watch")
    for kind in (getattr(aio, name),)
    for key, member in inspect.getmembers(kind, callable)
    if not key.startswith("_") and inspect.isfunction(inspect.unwrap(getattr(member, "__func__", member)))
} | {"Factory.__init__": (aio.Factory, "__init__")}
PARAMETERS = [
    pytest.param(path, parameter, id=f"{path}-{parameter.name}")
    for path, (kind, key) in METHODS.items()
    for parameter in inspect.signature(inspect.getattr_static(kind, key).__get__(None, kind)).parameters.values()
    if parameter.name != "self"
]
FIELDS = [
    pytest.param(kind, field, id=f"{kind.__name__}-{field.name}")
    for kind in (aio.VMConfig, aio.FactoryConfig, aio.ImageConfig, aio.Places, aio.Probe)
    for field in dataclasses.fields(kind)
]


def call(path: str, given: dict[str, object]) -> object:
    """The method was called on an object of which nothing is known: what is wrong is refused before it is looked at."""
    kind, key = METHODS[path]
    # It owns nothing, so its end is nobody's business.
    bare = type(kind.__name__, (kind,), {"__del__": lambda _self: None})
    called = getattr(kind if inspect.ismethod(getattr(kind, key)) else bare.__new__(bare), key)
    for name, parameter in inspect.signature(called).parameters.items():
        if parameter.default is parameter.empty:
            given.setdefault(name, GOOD.get(parameter.annotation))
    result = called(**given)
    if inspect.isasyncgen(result):
        return asyncio.run(anext(result))
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize(("path", "parameter"), PARAMETERS)
def test_what_a_parameter_cannot_be_is_refused_by_its_name(path, parameter) -> None:
    # A new kind of parameter is a line in CHECKS, and one in WRONG above.
    for value in WRONG[parameter.annotation]:
        with pytest.raises(ConfigError) as refused:
            call(path, {parameter.name: value})
        assert refused.value.field.partition(":")[0] == parameter.name, value
        assert refused.value.hint or "must be" in str(refused.value) or parameter.name == "files", value


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_what_a_configuration_cannot_hold_is_refused_by_its_name(kind, field) -> None:
    needed = {"home": "/h", "runtime": "/r"} if kind is aio.Places else {}
    needed |= {"name": "n", "command": "c"} if kind is aio.Probe else {}
    is_choice = get_origin(get_type_hints(kind)[field.name]) is Literal
    for value in _NO_CHOICE if is_choice else WRONG[field.type]:
        if field.name in ("qemu", "endpoint", "metrics") and value == Path("/x"):
            continue  # they are paths
        with pytest.raises(ConfigError) as refused:
            kind(**needed | {field.name: value})
        assert refused.value.field.rpartition(".")[2] == field.name, value


def test_paths_are_taken_as_text_and_as_path_objects() -> None:
    assert CHECKS["GuestPath"]("path", PurePosixPath("/x")) == CHECKS["GuestPath"]("path", "/x") == "/x"
    assert CHECKS["Sequence[GuestPath]"]("argv", ["sh", PurePosixPath("/x")]) == ("sh", "/x")
    assert aio.VMConfig(qemu=Path("/usr/bin/q")).qemu == "/usr/bin/q"
    assert aio.FactoryConfig(endpoint=Path("/c.sock")).endpoint == "/c.sock"
    assert aio.Places("/a", Path("/b")) == aio.Places(Path("/a"), Path("/b"))


def test_what_can_be_read_as_bytes_is_content() -> None:
    for value in (b"x", "x", bytearray(b"x"), memoryview(b"x"), array.array("i", [1])):
        assert CHECKS["bytes | str"]("data", value) is value


def test_limits_may_be_reached() -> None:
    for value in (0, 0.5, MAX_DURATION_S):
        assert CHECKS["float | None"]("timeout_s", value) == value
    assert CHECKS["int"]("mode", 0o7777) == 0o7777
    assert CHECKS["int | None"]("cpus", None) is None
    with pytest.raises(ConfigError, match="mode"):
        CHECKS["int"]("mode", 0o10000)


def test_a_list_that_can_be_read_once_is_read_once() -> None:
    def run(argv: Sequence[GuestPath]) -> None:  # noqa: F821 - it stands for a public parameter
        raise AssertionError(argv)

    words = (word for word in ("a", "b"))
    (given,), _ = Arguments(run).checked((words,), {})
    assert given == ("a", "b")


def test_a_parameter_that_there_is_none_of_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        call("VM.ping", {"nonsense": 1})
    with pytest.raises(TypeError, match="argv"):
        asyncio.run(aio.VM.__new__(aio.VM).exec())


def test_nobody_listens_without_a_listener() -> None:
    assert CHECKS["ProgressListener"]("progress", ignore_progress) is ignore_progress


BLOCKING = """
import vmfork
from vmfork import aio
try:
    vmfork.VM(aio.VM.__new__(aio.VM)).exec(["true"], timeout_s="5")
except vmfork.ConfigError as refused:
    print(refused.field)
"""


def test_the_blocking_api_is_behind_the_same_border() -> None:
    """In an interpreter of its own: the loop's thread is never stopped, and other tests fork, which wants no thread."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKING], capture_output=True, check=False, timeout=60
    )
    assert done.stdout == b"timeout_s\n", done.stderr
