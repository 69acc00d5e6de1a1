"""The words of a recipe, the same in Python and in TOML, as the steps that they stand for.

```
{packages = ["git"]}                      packages of Debian, in the image that is booted; before every other step
{pip = ["flask==3.1.*", "reqs.txt"]}      requirements; files of requirements (.txt, .lock, .in) and wheels (.whl)
{copy = ["app/", "/srv/app"]}             files and folders of the recipe's folder, then where they go
{hooks = {after_fork = "hooks/reseed"}}   files of the recipe's folder; or before_freeze, or both; a list for several
{run = "make"}                            a line of shell
{env = {APP = "1"}}                       for the programs of all later steps
{workdir = "/srv/app"}
{user = "www-data"}
{start = "python3 main.py"}               a program that runs on, in the forks too
{ready = {port = 8000, timeout = "30s"}}  or command, file, log (a regular expression); a text alone is a command
```
`run` and `ready` may have `network` ("all", or a list of what may be reached), `run` also `secrets` (names of variables
of the environment here) and `secret_files` (path in the guest = file here), and `pip`, `copy` and `run` `timeout` (a
duration, or seconds).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from vmfork.config.loader import name_unknown
from vmfork.errors import ConfigError
from vmfork.machine.ways import load_ways
from vmfork.recipe.step import (
    NOTHING_STARTED,
    READY_LIMIT_S,
    STEP_LIMIT_S,
    Condition,
    Copy,
    Env,
    Hooks,
    Packages,
    Pip,
    Ready,
    Run,
    Start,
    Step,
    User,
    Workdir,
)
from vmfork.units import parse_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfork.network.policy import NetworkPolicy

WORDS = ("packages", "pip", "copy", "hooks", "run", "env", "workdir", "user", "start", "ready")
_NETWORK = ("network", "network_log_only")
# What may stand beside a word.
_OPTIONS = {
    "pip": ("timeout",),
    "copy": ("timeout",),
    "run": (*_NETWORK, "secrets", "secret_files", "timeout"),
}
_CONDITIONS: tuple[str, ...] = get_args(Condition)
_MOMENTS = ("before_freeze", "after_fork")
_HIGHEST_PORT = 65_535
_HOW = 'such as {run = "make"}'


def read_steps(given: object, *, field: str = "steps") -> tuple[Step, ...]:
    """The steps of a list of tables. Raises `ConfigError`, which names the step and its key that is wrong."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise ConfigError(field, given, "must be a list of steps", hint=_HOW)
    steps = tuple(_read_numbered(f"{field}: {number}", each) for number, each in enumerate(given, 1))
    check_order(steps, field=field)
    return steps


def check_order(steps: Sequence[Step], *, field: str = "steps") -> None:
    """Raises `ConfigError` when packages come after a step that needs the machine."""
    first = next((at for at, step in enumerate(steps) if not isinstance(step, Packages)), len(steps))
    late = next((step for step in steps[first:] if isinstance(step, Packages)), None)
    if late is not None:
        hint = "put it before the others: packages are part of the image that the machine boots"
        raise ConfigError(field, [*late.names], "packages come after another step", hint=hint)


def check_logs(steps: Sequence[Step], *, field: str = "steps") -> None:
    """Raises `ConfigError` when a line of a log is waited for, and no step before it has started a program."""
    for number, step in enumerate(steps, 1):
        if isinstance(step, Start):
            return
        if isinstance(step, Ready) and step.condition == "log":
            raise ConfigError(
                f"{field}: {number}.ready.log", step.value, NOTHING_STARTED, hint='put a step "start" before it'
            )


def read_start(given: object, *, field: str) -> Start:
    """The step of a recipe's `start`."""
    return Start(line=_line(field, given))


def read_ready(given: object, *, field: str, network: NetworkPolicy = "none", limit_s: float = READY_LIMIT_S) -> Ready:
    """The step of a recipe's `ready`: a command, or a table with one condition.

    `network` and `limit_s` are for a table that says none of its own.
    """
    if isinstance(given, str):
        return Ready(condition="command", value=_line(field, given))
    if not isinstance(given, Mapping):
        hint = "such as {port = 8000}"
        raise ConfigError(field, given, "must be a string, which is a command, or a table", hint=hint)
    table = _table(field, given)
    known = (*_CONDITIONS, *_NETWORK, "timeout")
    _check_keys(field, table, known)
    found = [key for key in _CONDITIONS if key in table]
    if len(found) != 1:
        told = "none is given" if not found else f"{' and '.join(found)} are given"
        raise ConfigError(field, dict(table), f"has one condition, and {told}", hint=f"give {_either(_CONDITIONS)}")
    condition: Any = found[0]
    return Ready(
        condition=condition,
        value=_CHECKS[condition](f"{field}.{condition}", table[condition]),
        network=_read_network(field, table) if {*_NETWORK} & table.keys() else network,
        timeout_s=_read_timeout(field, table, limit_s),
    )


def _read_numbered(field: str, given: object) -> Step:
    """The step; an error names its number, whoever found it."""
    try:
        return _read_step(field, given)
    except ConfigError as error:
        if error.field.startswith(field):
            raise
        raise ConfigError(f"{field}.{error.field}", error.value, error.reason, hint=error.hint) from None


def _read_step(field: str, given: object) -> Step:
    table = _table(field, given)
    found = [word for word in WORDS if word in table]
    if len(found) != 1:
        stray = next((key for key in table if key not in (*WORDS, *_OPTIONS["run"])), None)
        if stray is not None:
            raise name_unknown(f"{field}.{stray}", "a step has it", "words of a step", (*WORDS, *_OPTIONS["run"]))
        told = "none" if not found else " and ".join(found)
        raise ConfigError(field, dict(table), f"a step has one word, and this one has {told}", hint=_HOW)
    word = found[0]
    _check_keys(field, table, (word, *_OPTIONS.get(word, ())))
    return _READERS[word](f"{field}.{word}", table[word], table)


def _read_pip(field: str, given: object, table: Mapping[str, Any]) -> Step:
    return Pip(wanted=_texts(field, given), timeout_s=_read_timeout(field, table, STEP_LIMIT_S))


def _read_copy(field: str, given: object, table: Mapping[str, Any]) -> Step:
    if isinstance(given, str) or len(texts := _texts(field, given)) < 2:
        raise ConfigError(field, given, "names what is copied, and then where to", hint='such as ["app/", "/srv/app"]')
    *sources, target = texts
    return Copy(sources=tuple(sources), target=target, timeout_s=_read_timeout(field, table, STEP_LIMIT_S))


def read_hooks(given: object, *, field: str) -> Hooks:
    """The step of a recipe's `hooks`: a table of files, by when they run."""
    table = _table(field, given, how='such as {after_fork = "hooks/reseed"}')
    _check_keys(field, table, _MOMENTS)
    return Hooks(**{moment: _texts(f"{field}.{moment}", table[moment]) for moment in _MOMENTS if moment in table})


def _read_run(field: str, given: object, table: Mapping[str, Any]) -> Step:
    return Run(
        line=_line(field, given),
        network=_read_network(field, table),
        secrets=_texts(f"{field}.secrets", table["secrets"]) if "secrets" in table else (),
        secret_files=_pairs(field, table.get("secret_files", {})),
        timeout_s=_read_timeout(field, table, STEP_LIMIT_S),
    )


def _read_env(field: str, given: object, _table: Mapping[str, Any]) -> Step:
    return Env(variables=_pairs(field, given))


_READERS: dict[str, Callable[[str, object, Mapping[str, Any]], Step]] = {
    "packages": lambda field, given, _: Packages(names=_texts(field, given)),
    "pip": _read_pip,
    "copy": _read_copy,
    "hooks": lambda field, given, _: read_hooks(given, field=field),
    "run": _read_run,
    "env": _read_env,
    "workdir": lambda field, given, _: Workdir(path=_line(field, given)),
    "user": lambda field, given, _: User(name=_line(field, given)),
    "start": lambda field, given, _: read_start(given, field=field),
    "ready": lambda field, given, _: read_ready(given, field=field),
}


def _read_network(field: str, table: Mapping[str, Any]) -> NetworkPolicy:
    given, log_only, ways = table.get("network", "none"), table.get("network_log_only", False), load_ways()
    if not isinstance(log_only, bool):
        raise ConfigError(f"{field}.network_log_only", log_only, "must be true or false")
    if isinstance(given, (list, tuple)):
        policy: NetworkPolicy = ways.Allow(*given, log_only=log_only)
        return policy
    if log_only:
        hint = 'such as network = ["api.example.org"], or [] where nothing is expected'
        raise ConfigError(f"{field}.network_log_only", log_only, "is of a list, and network is none", hint=hint)
    try:
        policy = ways.check_policy(given)
    except ConfigError as error:
        hint = 'give "all", or a list such as ["api.example.org"]'
        raise ConfigError(f"{field}.network", given, error.reason, hint=hint) from None
    return policy


def _read_timeout(field: str, table: Mapping[str, Any], default: float) -> float:
    return parse_seconds(table["timeout"], field=f"{field}.timeout") if "timeout" in table else default


def _read_port(field: str, given: object) -> str:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= _HIGHEST_PORT:
        raise ConfigError(field, given, f"{given!r} is no port", hint=f"give a number from 1 to {_HIGHEST_PORT}")
    return str(given)


def _read_pattern(field: str, given: object) -> str:
    text = _line(field, given)
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(field, given, f"{given!r} is no regular expression: {error}") from None
    return text


def _read_guest_path(field: str, given: object) -> str:
    text = _line(field, given)
    if not text.startswith("/"):
        raise ConfigError(field, given, f"{text!r} is not absolute", hint=f"the guest has no current folder: /{text}?")
    return text


def _line(field: str, given: object) -> str:
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise ConfigError(field, given, "must be text, and not empty")
    return given


_CHECKS: dict[str, Callable[[str, object], str]] = {
    "command": _line,
    "port": _read_port,
    "file": _read_guest_path,
    "log": _read_pattern,
}


def _texts(field: str, given: object) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(field, given, "must be text, or a list of texts")
    return tuple(_line(field, each) for each in listed)


def _pairs(field: str, given: object) -> dict[str, str]:
    table = _table(field, given)
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f"{field}.{key}", value, "must be text", hint=f'write it in quotes: "{value}"')
    return dict(table)


def _table(field: str, given: object, *, how: str = _HOW) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(field, given, f"{given!r} is no table", hint=how)
    return given


def _check_keys(field: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise name_unknown(f"{field}.{key}", "a step has it", "keys there", known)


def _either(known: tuple[str, ...]) -> str:
    return f"{', '.join(known[:-1])} or {known[-1]}"
