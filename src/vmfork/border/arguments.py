"""What a caller may give, by the annotation of the parameter it is given for."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from vmfork.border.failures import CallbackError
from vmfork.config import CardChoice, FactoryConfig, ImageConfig, LeftPrograms, Places, ProgramLimits, VMConfig
from vmfork.errors import ConfigError
from vmfork.progress import ignore_progress
from vmfork.units import MAX_DURATION_S, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[str, Any], Any]

# What a parameter of that name may be, wherever it is; any other whole number is 0 or more.
_RANGES = {"count": (1, 65_535), "cpus": (1, 255), "memory_mib": (1, 1 << 32), "mode": (0, 0o7777)}
_LARGEST = (1 << 63) - 1
_RANGES |= {"port": (1, 65_535), "guest_port": (1, 65_535), "size": (1, _LARGEST)}
# A terminal's, struct winsize of ioctl_tty(2).
_RANGES |= {"rows": (1, 65_535), "columns": (1, 65_535)}
_LIST_HINTS = {"argv": "give a list of strings, or a line of shell to shell()"}
_LINE = 60
_NAMED_KINDS = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
_WINDOW_HINT = "give both as whole numbers: (24, 80)"


class Arguments:
    """The parameters of `function`, read when it is first called: importing a module should not pay for it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @cached_property
    def checks(self) -> dict[str, Check]:
        """The check of each parameter. A parameter whose annotation is not in `CHECKS` has none."""
        return {
            name: CHECKS[parameter.annotation]
            for name, parameter in self._signature.parameters.items()
            if parameter.annotation in CHECKS
        }

    def checked(self, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, in the form that is worked with.

        Raises `ConfigError`, naming the parameter, for a value that it cannot have. For an unknown parameter it raises
        `TypeError`, as Python does.
        """
        if not self._fit(args, given):
            bound = self._signature.bind(*args, **given)
            for name, value in bound.arguments.items():
                bound.arguments[name] = self._check(name, value)
            return bound.args, bound.kwargs
        return (
            tuple([self._check(name, value) for name, value in zip(self._places, args, strict=False)]),
            {name: self._check(name, value) for name, value in given.items()},
        )

    def _fit(self, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
        """Whether they are what `bind` would take: it takes ten times as long, and knows how to refuse."""
        if len(args) >= len(self._rests):
            return False
        required, known = self._rests[len(args)]
        return required <= given.keys() <= known

    @cached_property
    def _places(self) -> tuple[str, ...]:
        """The parameters that may be given by their place."""
        return tuple(name for name, kind in self._kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)

    @cached_property
    def _rests(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Behind 0, 1, 2... arguments by place: what must be given by name, and what may. Empty with `*args`."""
        if not {*self._kinds.values()} <= _NAMED_KINDS:
            return []
        required = {name for name, each in self._signature.parameters.items() if each.default is each.empty}
        rests = [self._kinds.keys() - self._places[:count] for count in range(len(self._places) + 1)]
        return [(frozenset(required & rest), frozenset(rest)) for rest in rests]

    @cached_property
    def _kinds(self) -> dict[str, Any]:
        return {name: parameter.kind for name, parameter in self._signature.parameters.items()}

    def _check(self, name: str, value: Any) -> Any:
        check = self.checks.get(name)
        return value if check is None else check(name, value)


def _refuse(name: str, value: object, what: str, hint: str = "") -> ConfigError:
    return ConfigError(name, value, f"{_short(value)} is not {what}", hint=hint or f"give {what}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LINE else f"{text[: _LINE - 3]}..."


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "text")
    return value


def _signal(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _refuse(name, value, "a signal", "give its name or its number")
    return value


def _window(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise _refuse(name, value, "rows and columns", _WINDOW_HINT)
    low, high = _RANGES["rows"]
    if not all(isinstance(each, int) and not isinstance(each, bool) and low <= each <= high for each in value):
        raise _refuse(name, value, f"rows and columns from {low} to {high}", _WINDOW_HINT)
    return tuple(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "True or False")
    return value


def _whole(name: str, value: Any) -> int:
    low, high = _RANGES.get(name, (0, _LARGEST))
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not low <= number <= high:
        raise _refuse(name, value, f"a whole number from {low} to {high}")
    return number


def _size(name: str, value: Any) -> int:
    return parse_size_mib(value, field=name)


def _seconds(name: str, value: Any) -> float:
    # Not a number compares as false.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_DURATION_S:
        raise _refuse(name, value, f"a number of seconds from 0 to {MAX_DURATION_S:,}")
    return value


def _path(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _refuse(name, value, "a path", "give text or a Path")
    return text


def _content(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        try:
            memoryview(value)
        except TypeError:
            raise _refuse(name, value, "text or bytes") from None
    return value


def _table(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _refuse(name, value, "a dictionary")
    return value


def _text_or_table(name: str, value: Any) -> Any:
    if not isinstance(value, (str, Mapping)):
        raise _refuse(name, value, "text or a dictionary")
    return value


def _table_of(check: Check) -> Check:
    def check_all(name: str, value: Any) -> dict[str, Any]:
        return {_text(name, key): check(name, each) for key, each in _table(name, value).items()}

    return check_all


def _list_of(check: Check) -> Check:
    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise _refuse(name, value, "a list", _LIST_HINTS.get(name, ""))
        return tuple(check(name, item) for item in value)

    return check_all


def _anything(_name: str, value: Any) -> Any:
    return value


def _of(kind: type) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise _refuse(name, value, f"a {kind.__name__}")
        return value

    return check


def _listener_to(what: str) -> Check:
    """The listener; what it raises passes through vmfork as it is."""

    def check(name: str, value: Any) -> Any:
        if not callable(value):
            raise _refuse(name, value, f"something to call with each {what}")
        if value is ignore_progress:
            return ignore_progress

        def told(event: Any, /) -> None:
            try:
                value(event)
            except Exception as error:
                raise CallbackError(error) from error

        return told

    return check


def _one_of(choice: Any) -> Check:
    """A check for one of several words, which `choice` is a `Literal` of."""
    words = get_args(choice)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            raise _refuse(name, value, " or ".join(map(repr, words)))
        return value

    return check


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


# The annotations of public parameters as they are written. What is in a list or a table, and which text is good, is
# checked where it is known.
CHECKS: dict[str, Check] = {
    "str": _text,
    "bool": _flag,
    "int": _whole,
    "int | None": _or_none(_whole),
    "int | str": _signal,
    "tuple[int, int] | None": _or_none(_window),
    "ProgramLimits | None": _or_none(_of(ProgramLimits)),
    "Size | None": _or_none(_size),
    "float": _seconds,
    "float | None": _or_none(_seconds),
    "GuestPath": _path,
    "HostPath": _path,
    "str | None": _or_none(_text),
    "bytes": _content,
    "bytes | str": _content,
    "bytes | str | None": _or_none(_content),
    "Mapping[str, str] | None": _or_none(_table),
    "Mapping[str, Any] | None": _or_none(_table),
    "str | Mapping[str, Any]": _text_or_table,
    "Mapping[str, GivenFile] | None": _or_none(_table),
    "Sequence[str]": _list_of(_text),
    "Sequence[Mapping[str, Any]]": _list_of(_table),
    "Mapping[str, HostPath] | None": _or_none(_table_of(_path)),
    "Sequence[GuestPath]": _list_of(_path),
    "Sequence[Probe]": _list_of(_anything),
    "CardChoice": _one_of(CardChoice),
    "LeftPrograms": _one_of(LeftPrograms),
    "ProgressListener": _listener_to("Progress"),
    "OutputListener | None": _or_none(_listener_to("piece of output")),
    "Places | None": _or_none(_of(Places)),
    "VMConfig | None": _or_none(_of(VMConfig)),
    "ImageConfig | None": _or_none(_of(ImageConfig)),
    "FactoryConfig | None": _or_none(_of(FactoryConfig)),
}
