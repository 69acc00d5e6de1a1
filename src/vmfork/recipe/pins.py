"""What a step depends on, as a digest: its words, and the content of every file that it reads."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.recipe.context import hash_content
from vmfork.recipe.step import Copy, Hooks, Pip, Run, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfork.recipe.context import Context

# A line of a requirements file that names another one (pip, "Requirements File Format").
_NAMES_A_FILE = re.compile(r"\s*(?:-[rc]\s*|--(?:requirement|constraint)[\s=]\s*)([^\s#]+)")
FILES_OF_REQUIREMENTS = (".txt", ".in", ".lock")
WHEEL = ".whl"


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


def is_file(wanted: str) -> bool:
    """Whether what `pip` is to install is a file of the recipe's folder, by its ending; else it is a requirement."""
    return wanted.endswith((*FILES_OF_REQUIREMENTS, WHEEL)) and " @ " not in wanted


def _list_inputs(step: Step, context: Context) -> list[object]:
    # How long it may take, and what its secret files hold, changes nothing that stays.
    if isinstance(step, Copy):
        return [replace(step, timeout_s=1.0).to_words(), digest_copied(step, context)]
    if isinstance(step, Hooks):
        return [step.to_words(), [_hash_hook(source, context) for source, _ in step.placed]]
    if isinstance(step, Pip):
        files = [name for name in step.wanted if is_file(name)]
        return [replace(step, timeout_s=1.0).to_words(), [_hash_requirements(name, context) for name in files]]
    if isinstance(step, Run):
        paths = dict.fromkeys(step.secret_files, "")
        return [replace(step, timeout_s=1.0, secret_files=paths).to_words()]
    return [step.to_words()]


def _hash_hook(name: str, context: Context) -> str:
    return hashlib.sha256(context.read_file(name, field="hooks")).hexdigest()


def _hash_requirements(name: str, context: Context, above: tuple[str, ...] = ()) -> list[object]:
    """The digests of the file and of those it names, with their names."""
    path = context.find(name, field="pip")
    if name in above:
        raise ConfigError("pip", name, f"{' names '.join((*above, name))}: they name each other")
    try:
        text = "" if name.endswith(WHEEL) else path.read_text(encoding="utf-8")
        digest = hash_content(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("pip", name, f"cannot read {path}: {why}") from error
    below = [str(PurePosixPath(name).parent / named) for named in _list_named(text)]
    return [name, digest, *(_hash_requirements(each, context, (*above, name)) for each in below)]


def _list_named(text: str) -> Iterator[str]:
    """The files that a file of requirements names; what lies behind an address is not looked at."""
    for line in text.splitlines():
        if (found := _NAMES_A_FILE.match(line)) and "://" not in found[1]:
            yield found[1]
