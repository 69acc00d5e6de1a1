"""What a step depends on, as a digest: its words, and the content of every file that it reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.recipe.context import hash_content
from vmfork.recipe.requirements import WHEEL, Listed, check_wanted, is_file, is_unconditional, read_listed
from vmfork.recipe.step import Copy, Hooks, Pip, Run, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.recipe.context import Context


def digest_steps(steps: Sequence[Step], context: Context) -> tuple[str, ...]:
    """A digest of each step and of all before it: two recipes that begin alike have the same ones up to there.

    Files are read, which takes about a second for a GiB. Raises `ConfigError` for a file that is missing or may not be
    read by the recipe.
    """
    digests, before = [], ""
    for step in steps:
        before = _digest_step(step, context, before)
        digests.append(before)
    return tuple(digests)


def check_pinned(step: Step, context: Context, pins: Sequence[str]) -> None:
    """What the step reads is what `digest_steps` found: the last of `pins` is the step's, those before are its former.

    Its files are read again. Raises `ConfigError` when one has changed: what was made would have another's name.
    """
    *former, pin = pins
    if _digest_step(step, context, former[-1] if former else "") != pin:
        word, value = next(iter(step.to_words().items()))
        raise ConfigError(word, value, "it changed since the build began", hint="build again when nothing writes there")


def _digest_step(step: Step, context: Context, before: str) -> str:
    return hashlib.sha256(json.dumps([before, *_list_inputs(step, context)]).encode()).hexdigest()


def digest_copied(step: Copy, context: Context) -> list[str]:
    """A digest of each source of the step, as it is now."""
    return [context.digest(source, field="copy") for source in step.sources]


def _list_inputs(step: Step, context: Context) -> list[object]:
    # How long it may take, and what its secret files hold, changes nothing that stays.
    if isinstance(step, Copy):
        return [replace(step, timeout_s=1.0).to_words(), digest_copied(step, context)]
    if isinstance(step, Hooks):
        return [step.to_words(), [_hash_hook(source, context) for source, _ in step.placed]]
    if isinstance(step, Pip):
        return [replace(step, timeout_s=1.0).to_words(), [file.to_inputs() for file in _read_files(step, context)]]
    if isinstance(step, Run):
        paths = dict.fromkeys(step.secret_files, "")
        return [replace(step, timeout_s=1.0, secret_files=paths).to_words()]
    return [step.to_words()]


def _hash_hook(name: str, context: Context) -> str:
    return hashlib.sha256(context.read_file(name, field="hooks")).hexdigest()


def wants_package(step: Pip, context: Context) -> bool:
    """Whether the step wants a package whatever the guest's Python is: no marker may leave it out.

    Raises `ConfigError` as `digest_steps` does.
    """
    files = _read_files(step, context)
    return any(file.wants for file in files) or any(is_unconditional(each) for each in step.wanted if not is_file(each))


@dataclass(frozen=True, slots=True)
class _File:
    """A file that `pip` is given, and those that it goes on with: of `limits` nothing is installed."""

    name: str
    digest: str
    listed: Listed
    required: tuple[_File, ...]
    limits: tuple[_File, ...]

    @property
    def wants(self) -> bool:
        return self.listed.wants or any(file.wants for file in self.required)

    def to_inputs(self) -> list[object]:
        """The digests of the file and of those it names, with their names."""
        return [self.name, self.digest, *(file.to_inputs() for file in (*self.required, *self.limits))]


def _read_files(step: Pip, context: Context) -> list[_File]:
    """The files that the step wants. Raises `ConfigError` for whatever it wants that pip is not asked for."""
    for wanted in step.wanted:
        check_wanted(wanted)
    return [_read_file(wanted, context) for wanted in step.wanted if is_file(wanted)]


def _read_file(name: str, context: Context, above: tuple[str, ...] = ()) -> _File:
    if name in above:
        raise ConfigError("pip", name, f"{' names '.join((*above, name))}: they name each other")
    path = context.find(name, field="pip")
    try:
        digest = hash_content(path)
        text = "" if name.endswith(WHEEL) else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("pip", name, f"cannot read {path}: {why}") from error
    listed = Listed(wants=True) if name.endswith(WHEEL) else read_listed(text, name)
    required, limits = (
        tuple(_read_file(str(PurePosixPath(name).parent / named), context, (*above, name)) for named in names)
        for names in (listed.required, listed.limits)
    )
    return _File(name, digest, listed, required, limits)
