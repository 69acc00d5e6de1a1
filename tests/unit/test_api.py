"""The public names, and the promise that `vmfork.X` and `vmfork.aio.X` differ in waiting alone."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import facade
import pytest

import vmfork
import vmfork.aio

# A name that is added, renamed or lost shows here, and in the changelog.
WAITING = {
    "VM",
    "Checkpoint",
    "Cluster",
    "ClusterVM",
    "Factory",
    "Forward",
    "GuestConnection",
    "GuestProcess",
    "Image",
    "Reverse",
    "Template",
    "Watch",
}
VALUES = {
    "Allow", "CodeFailure", "CodeOutput", "CodeResult", "Decision", "ExecResult", "FactoryConfig", "FileEvent",
    "ImageConfig", "Network", "NetworkCounts", "Places", "Probe", "ProgramEvent", "ProgramLimits", "VMConfig",
    "VMHandle", "detailed_timings", "find_places", "load_settings", "Recipe", "Saved",
}  # fmt: skip
ERRORS = {
    "AdoptError", "ArtifactError", "Closed", "ClusterError", "CodeError", "ConfigError", "DeadlineExceeded",
    "ExecError",
    "FallbackRefused", "FitError", "GuestError", "GuestFileError",
    "HookError", "HostError", "ImageCorrupt", "ImageError", "ImageExists", "ImageInUse", "ImageNotFound",
    "InternalError", "LaunchError", "LimitExceeded", "MachineEnded", "NoNode", "NoRoom", "NodeLost", "NodeRefused",
    "NotOwner", "PortError", "ProtocolError",
    "RolledBack",
    "SecretsPresent", "SetupError", "StoreBusy", "TemplateCorrupt", "TemplateElsewhere", "TemplateError",
    "TemplateExists", "TemplateNotFound", "TemplateStale", "TemplateUnfit",
    "VMExists", "VMForkError", "VMNotFound", "WrongContext",
}  # fmt: skip

# Spelt otherwise where nobody awaits.
BLOCKING_NAME = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}

PAIRS = [(name, getattr(vmfork, name), getattr(vmfork.aio, name)) for name in sorted(WAITING)]
by_pair = pytest.mark.parametrize(("name", "blocking", "waiting"), PAIRS, ids=sorted(WAITING))


def test_the_public_names() -> None:
    assert set(vmfork.__all__) == WAITING | VALUES | ERRORS | {"aio"}
    assert set(vmfork.aio.__all__) == WAITING | VALUES | ERRORS
    assert len(vmfork.__all__) == len(set(vmfork.__all__))


@pytest.mark.parametrize("module", [vmfork, vmfork.aio])
def test_every_name_is_there_and_no_other(module) -> None:
    for name in module.__all__:
        assert getattr(module, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(VALUES | ERRORS))
def test_values_and_errors_are_the_same_in_both(name) -> None:
    assert getattr(vmfork, name) is getattr(vmfork.aio, name)


def public_members(kind: type) -> dict[str, object]:
    """Name and raw member: methods, class and static methods, properties, and what `__init__` sets (as `None`)."""
    members = {
        BLOCKING_NAME.get(name, name): member
        for part in reversed(kind.__mro__)
        if part.__module__.startswith("vmfork.")
        for name, member in vars(part).items()
        if (not name.startswith("_") or name in {*BLOCKING_NAME, *BLOCKING_NAME.values()})
        and (callable(member) or isinstance(member, (property, classmethod, staticmethod)))
    }
    made = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))
    stored = [node for node in ast.walk(made) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return members | {node.attr: None for node in stored if not node.attr.startswith("_")}


def sort_of(member: object) -> str:
    if member is None or isinstance(member, property):
        return "data"
    return type(member).__name__


def function_of(member: object):
    return member.__func__ if isinstance(member, (classmethod, staticmethod)) else member


def returned(function) -> str:
    """The annotation as it reads where nobody awaits."""
    annotation = inspect.signature(function).return_annotation
    return re.sub(r"\bAsync(Iterator|Iterable|Generator)\b", r"\1", str(annotation))


def test_the_blocking_api_is_what_the_generator_writes() -> None:
    assert facade.OUTPUT.read_text() == facade.generate(), "run tools/generate"


@by_pair
def test_both_have_the_same_members_of_the_same_sort(name, blocking, waiting) -> None:
    here, there = public_members(blocking), public_members(waiting)
    assert {key: sort_of(member) for key, member in here.items()} == {
        key: sort_of(member) for key, member in there.items()
    }
    assert len(here) > 5


@by_pair
def test_methods_take_and_give_the_same(name, blocking, waiting) -> None:
    here, there = public_members(blocking), public_members(waiting)
    for key, member in here.items():
        if sort_of(member) != "data":
            one, other = function_of(member), function_of(there[key])
            if key not in BLOCKING_NAME.values():
                assert parameters(one) == parameters(other), f"{name}.{key}"
            assert returned(one) == returned(other), f"{name}.{key}"


def parameters(function) -> list[tuple[str, str, object, str]]:
    return [
        (p.name, p.kind.name, p.default, str(p.annotation)) for p in inspect.signature(function).parameters.values()
    ]


@by_pair
def test_nothing_blocking_must_be_awaited(name, blocking, waiting) -> None:
    for key, member in public_members(blocking).items():
        if sort_of(member) != "data":
            function = function_of(member)
            assert not inspect.iscoroutinefunction(function), f"{name}.{key}"
            assert not inspect.isasyncgenfunction(function), f"{name}.{key}"


def test_what_needs_no_waiting_is_no_coroutine_either() -> None:
    plain = {
        f"{name}.{key}"
        for name, _, waiting in PAIRS
        for key, member in public_members(waiting).items()
        if sort_of(member) != "data"
        and not inspect.iscoroutinefunction(inspect.unwrap(function_of(member)))
        and not inspect.isasyncgenfunction(function_of(member))
    }
    assert plain == {"Factory.stats", "VM.console_tail", "VM.memory"}


def test_the_constructor_of_a_factory_is_public_and_the_same() -> None:
    assert parameters(vmfork.Factory.__init__) == parameters(vmfork.aio.Factory.__init__)


@by_pair
def test_what_is_said_of_a_method_is_said_of_both(name, blocking, waiting) -> None:
    """The first line is what is true afterwards; the rest stands once, with the waiting form."""
    assert f"vmfork.aio.{name}" in (blocking.__doc__ or "")
    here, there = public_members(blocking), public_members(waiting)
    for key, member in here.items():
        if key.startswith("_"):
            continue
        said = inspect.getdoc(member)
        assert said, f"{name}.{key}"
        if there[key] is not None:
            assert said.splitlines()[0] == (inspect.getdoc(there[key]) or "").splitlines()[0], f"{name}.{key}"


@pytest.mark.parametrize("name", sorted(WAITING | VALUES | ERRORS))
def test_every_public_class_and_method_is_explained(name) -> None:
    """A member that overrides another may leave it to that one to say what it does."""
    for public in (getattr(vmfork, name), getattr(vmfork.aio, name)):
        assert public.__doc__, name
        assert not public.__doc__.startswith(f"{name}("), f"{name} has only what a dataclass writes of itself"
        for key, member in vars(public).items() if isinstance(public, type) else ():
            method = isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member)
            if method and not key.startswith("_"):
                assert inspect.getdoc(getattr(public, key)), f"{name}.{key}"
