"""Recipes: the last of six steps changed, beside that step alone; and a template that is there, ensured and opened."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.figures import Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.config import VMConfig
from vmfork.recipe.words import read_steps
from vmfork.template.recipe import Recipe
from vmfork.template.removal import remove_template

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.suite.context import Context

_NAME = "bench-recipe"
_REPEATS = 20
# The step before the last took long enough to be kept (template/making.py). Sleeps are as long on every host.
_STEPS = (
    {"copy": ["app/", "/srv/app"]},
    {"env": {"APP": "1"}},
    {"workdir": "/srv/app"},
    {"run": "python3 main.py"},
    {"run": "sleep 2"},
)


async def run(context: Context) -> Samples:
    folder = context.scratch("recipe")
    (folder / "app").mkdir()
    (folder / "app" / "main.py").write_text("import json\n")
    numbers, config, samples = itertools.count(), VMConfig(memory_mib=MEMORY_MIB), Samples()

    def make_recipe() -> Recipe:
        """As each before, but for its last step."""
        last = {"run": f"sleep 3; echo {next(numbers)} > /srv/last"}
        return Recipe(steps=read_steps((*_STEPS, last)), folder=folder)

    async def change() -> dict[str, float]:
        begun = time.perf_counter()
        template = await Template.build(_NAME, config, recipe=make_recipe(), replace=True, places=context.places)
        return {"changed": time.perf_counter() - begun, "step": template.manifest.steps[-1].took_s}

    recipe = make_recipe()
    await Template.build(_NAME, config, recipe=recipe, places=context.places)
    try:
        asked: dict[str, Side] = {
            "open": _repeated(lambda: Template.open(_NAME, places=context.places)),
            "ensure": _repeated(lambda: Template.ensure(_NAME, places=context.places)),
            "ensure-recipe": _repeated(lambda: Template.ensure(_NAME, recipe=recipe, places=context.places)),
        }
        await context.interleave(samples, asked, rounds=20, quick_rounds=3)
        await context.interleave(samples, {"change": change}, rounds=5, quick_rounds=1)
    finally:
        await asyncio.shield(asyncio.ensure_future(remove_template(_NAME, places=context.places)))
    return samples


def _repeated(ask: Callable[[], Awaitable[object]]) -> Side:
    async def once() -> float:
        begun = time.perf_counter()
        for _ in range(_REPEATS):
            await ask()
        return (time.perf_counter() - begun) / _REPEATS

    return once


MEASURE = Measure(
    name="recipe",
    title="Recipes",
    unit="s",
    run=run,
    budget_s=35.0,
    is_asked_for=True,
    rows=(
        Row(
            key="recipe.change",
            text="changing the last of six steps, over that step (3 s)",
            kind="ratio",
            of="changed",
            to="step",
            target=Target(at_most=1.5),
            bounds="The copy of the layer's RAM, a restore, and the digest of the template's RAM at the end.",
        ),
        Row(
            key="recipe.ensure",
            text="ensuring a template that is there, over opening it",
            kind="ratio",
            of="ensure",
            to="open",
            target=Target(at_most=1.2),
            bounds="It is opened, and a call more.",
        ),
        milliseconds("recipe.open", "a template opened", of="open"),
        milliseconds("recipe.ensure-recipe", "ensured with its recipe, whose files are read", of="ensure-recipe"),
    ),
)
