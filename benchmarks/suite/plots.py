"""Pictures of a run, from its samples: SVG without a background, in tones that can be read on light and dark.

matplotlib is imported when something is drawn, and nothing else needs it.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.suite.figures import AT
from vmfork.bench.stats import quantile
from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.suite.figures import Plot
    from benchmarks.suite.measure import Measure
    from benchmarks.suite.result import RunResult

    Sides = Mapping[str, Sequence[float]]

# At least 3:1 against white and against GitHub's dark page (#0d1117): WCAG 2.1, 1.4.11; the text has 4.5:1 on both.
_INK = "#767b82"
_TONES = ("#2f81f7", "#d9730d", "#2da44e", "#bf4bd9", "#cf3d4f", "#8a7a00")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vmfork",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.25,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_SIZE_INCHES = (6.4, 3.6)


def draw(result: RunResult, measures: Sequence[Measure], folder: Path) -> Sequence[Path]:
    """Every picture that the run has samples for is in `folder`, as NAME.svg.

    A picture without samples is left as it was. Raises `HostError` without matplotlib.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and takes a second to import
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise HostError(
            "pictures are drawn with matplotlib, which is not installed", hint="pip install 'matplotlib>=3.7'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    with mpl.rc_context(_STYLE):
        for measure in measures:
            samples = result.measures[measure.name].samples if measure.name in result.measures else {}
            for plot in measure.plots:
                figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
                if _draw_one(figure.subplots(), plot, samples):
                    drawn.append(_save(figure, folder / f"{plot.name}.svg"))
    return drawn


def _save(figure: Any, path: Path) -> Path:
    # Without the date, drawing the same run again changes nothing.
    figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _draw_one(axes: Any, plot: Plot, samples: Sides) -> bool:
    """Tells whether there was anything to draw."""
    drawing = {"bars": _bars, "stack": _stack, "distribution": _distribution, "line": _line}[plot.kind]
    if not drawing(axes, plot, samples):
        return False
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    return True


def _found(plot: Plot, samples: Sides) -> list[tuple[str, list[float], str]]:
    """Label, scaled samples and tone of each side that has samples."""
    present = [(label, samples[side]) for side, label in plot.sides.items() if samples.get(side)]
    return [
        (label, [value * plot.scale for value in values], _TONES[index % len(_TONES)])
        for index, (label, values) in enumerate(present)
    ]


def _bars(axes: Any, plot: Plot, samples: Sides) -> bool:
    """Medians, with the middle half of the samples as a line over each."""
    found = _found(plot, samples)
    for index, (_, values, tone) in enumerate(found):
        middle = statistics.median(values)
        axes.bar(index, middle, color=tone, width=0.6)
        axes.plot([index] * 2, [quantile(values, 0.25), quantile(values, 0.75)], color=_INK, linewidth=2)
        axes.annotate(f" {middle:.3g}", (index, middle), ha="left", va="bottom")
    axes.set_xticks(range(len(found)), [label for label, *_ in found])
    axes.grid(visible=False, axis="x")
    return bool(found)


def _stack(axes: Any, plot: Plot, samples: Sides) -> bool:
    left = 0.0
    found = _found(plot, samples)
    for label, values, tone in found:
        middle = statistics.median(values)
        axes.barh(0, middle, left=left, color=tone, label=f"{label}: {middle:.1f}", height=0.5)
        left += middle
    axes.set_yticks([])
    axes.set_ylim(-0.5, 1.6)
    axes.grid(visible=False, axis="y")
    if found:
        axes.legend(loc="upper left", ncols=3, title=f"{plot.y or plot.x}, medians")
    return bool(found)


def _distribution(axes: Any, plot: Plot, samples: Sides) -> bool:
    found = _found(plot, samples)
    for label, values, tone in found:
        ordered = sorted(values)
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        axes.step([ordered[0], *ordered], [0.0, *shares], where="post", color=tone, label=f"{label} ({len(ordered)})")
    axes.set_ylim(0, 1)
    if found:
        axes.legend(loc="lower right")
    return bool(found)


def _line(axes: Any, plot: Plot, samples: Sides) -> bool:
    """Medians along the axis, with the middle half of the samples as a band."""
    positions: set[float] = set()
    for index, (side, label) in enumerate(plot.sides.items()):
        points = sorted(
            (float(name.partition(AT)[2]), [value * plot.scale for value in values])
            for name, values in samples.items()
            if name.partition(AT)[0] == side and AT in name and values
        )
        if not points:
            continue
        along = [position for position, _ in points]
        tone = _TONES[index % len(_TONES)]
        axes.plot(along, [statistics.median(values) for _, values in points], "o-", color=tone, label=label, ms=4)
        quarters = [(quantile(values, 0.25), quantile(values, 0.75)) for _, values in points]
        axes.fill_between(along, [q[0] for q in quarters], [q[1] for q in quarters], color=tone, alpha=0.2, lw=0)
        positions.update(along)
    if not positions:
        return False
    if plot.log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(positions), [f"{position:g}" for position in sorted(positions)])
        axes.minorticks_off()
    if plot.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend()
    return True
