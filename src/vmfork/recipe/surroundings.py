"""What the programs of a step start with: what the steps before it said of environment, folder and user."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmfork.recipe.step import Env, Step, User, Workdir
from vmfork.wire.command import Command, shell_argv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Environment, folder and user of programs."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""

    def after(self, step: Step) -> Surroundings:
        """Those of the steps behind `step`."""
        if isinstance(step, Env):
            return replace(self, env={**self.env, **step.variables})
        if isinstance(step, Workdir):
            return replace(self, cwd=step.path)
        return replace(self, user=step.name) if isinstance(step, User) else self

    def after_all(self, steps: Sequence[Step]) -> Surroundings:
        """Those of the steps behind all of `steps`."""
        found = self
        for step in steps:
            found = found.after(step)
        return found

    def command(self, line: str, more: Mapping[str, str], *, secrets: Mapping[str, str] | None = None) -> Command:
        """The line of shell as a program; `more` come behind our variables, and `secrets` before them."""
        return Command(shell_argv(line), env={**more, **self.env, **(secrets or {})}, cwd=self.cwd, user=self.user)
