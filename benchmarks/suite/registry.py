"""The measurements there are: every module in the folder `measures` that has one, by name; those of README first."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from benchmarks.suite import measures
from benchmarks.suite.measure import Measure
from benchmarks.suite.report import SHORT
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def find_measures(names: Collection[str] = (), *, asked_for: bool = False) -> Sequence[Measure]:
    """Those of a whole run, or of `names`, each a name or its beginning; of "" all. With `asked_for` the others.

    Raises `ConfigError` when one matches nothing.
    """
    found = []
    for module in pkgutil.iter_modules(measures.__path__):
        measure = importlib.import_module(f"{measures.__name__}.{module.name}").MEASURE
        assert isinstance(measure, Measure)
        found.append(measure)
    # Where time runs out, what is missing is what fewer look for. Peers after ours: they are slow.
    told = {key.partition(".")[0] for key in SHORT}
    found.sort(key=lambda measure: (measure.name not in told, measure.name.startswith("peer-"), measure.name))
    if not names:
        return [measure for measure in found if measure.is_asked_for == asked_for]
    for name in names:
        if not any(measure.name.startswith(name) for measure in found):
            known = ", ".join(measure.name for measure in found)
            raise ConfigError("only", name, f"no measurement is called {name!r}", hint=f"there are: {known}")
    return [measure for measure in found if any(measure.name.startswith(name) for name in names)]
