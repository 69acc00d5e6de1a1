"""What a step depends on, as a digest: its words, and the content of every file that it reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
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
        before = hashlib.sha256(json.dumps([before, *_list_inputs(step, context)]).encode()).hexdigest()
        digests.append(before)
    return tuple(digests)


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
        for wanted in step.wanted:
            check_wanted(wanted)
        files = [name for name in step.wanted if is_file(name)]
        return [replace(step, timeout_s=1.0).to_words(), [_hash_requirements(name, context) for name in files]]
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
    return any(_file_wants(each, context) if is_file(each) else is_unconditional(each) for each in step.wanted)


def _file_wants(name: str, context: Context) -> bool:
    _, listed = _read_requirements(name, context)
    return listed.wants or any(_file_wants(_place(each, name), context) for each in listed.required)


def _hash_requirements(name: str, context: Context, above: tuple[str, ...] = ()) -> list[object]:
    """The digests of the file and of those it names, with their names."""
    if name in above:
        raise ConfigError("pip", name, f"{' names '.join((*above, name))}: they name each other")
    digest, listed = _read_requirements(name, context)
    below = [_place(named, name) for named in (*listed.required, *listed.limits)]
    return [name, digest, *(_hash_requirements(each, context, (*above, name)) for each in below)]


def _read_requirements(name: str, context: Context) -> tuple[str, Listed]:
    """The digest of a file of requirements, or of a wheel, and what it says."""
    path = context.find(name, field="pip")
    try:
        digest = hash_content(path)
        text = "" if name.endswith(WHEEL) else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("pip", name, f"cannot read {path}: {why}") from error
    return digest, Listed(wants=True) if name.endswith(WHEEL) else read_listed(text, name)


def _place(named: str, name: str) -> str:
    """The file that the one called `name` names so."""
    return str(PurePosixPath(name).parent / named)
