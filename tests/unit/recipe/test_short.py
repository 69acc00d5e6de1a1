"""The short way to steps says the same as steps do."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfork.errors import ConfigError
from vmfork.recipe.context import Context
from vmfork.recipe.short import expand_steps
from vmfork.recipe.step import describe


def test_packages_come_first_then_files_then_pip_then_the_steps(tmp_path) -> None:
    steps = expand_steps(
        [{"packages": ["make"]}, {"run": "make"}],
        packages=["git"],
        files={"/srv/app": tmp_path / "app", "/srv/note": "note"},
        pip=["flask", "requirements.txt"],
        folder=tmp_path,
    )
    assert [describe(step) for step in steps] == [
        "packages git", "packages make", "copy app /srv/app", "copy note /srv/note", "pip flask requirements.txt",
        "run make",
    ]  # fmt: skip
    assert expand_steps((), packages=(), files={}, pip=(), folder=Path()) == ()


def test_a_file_elsewhere_is_refused_by_its_step(tmp_path) -> None:
    (step,) = expand_steps((), packages=(), files={"/passwd": "/etc/passwd"}, pip=(), folder=tmp_path)
    with pytest.raises(ConfigError, match="leads out of the recipe's folder"):
        Context.of(tmp_path).find(step.sources[0], field="copy")
