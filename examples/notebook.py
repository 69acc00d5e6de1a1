"""A session, as in a notebook, that is forked to try three ideas, and goes on with the best of them.

What the session holds is in the memory of an interpreter: no idea loads it again, and none spoils it for the others.

python examples/notebook.py. The template stays for the next run: vmfork template rm examples
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import vmfork

# An interpreter that every fork finds warm.
RECIPE = vmfork.Recipe(warm_up=("#!python\nimport json, random, unittest",))
CELLS = [
    "random.seed(7)",
    "xs = [x / 10 for x in range(100)]\nys = [3 + x * x / 2 + random.gauss(0, 1) for x in xs]",
    "def error(guess): return sum((guess(x) - y) ** 2 for x, y in zip(xs, ys)) / len(xs)",
]
# Each leaves a function `guess` behind.
IDEAS = {
    "the mean": "mean = sum(ys) / len(ys)\ndef guess(x): return mean",
    "a line": """
mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)
def guess(x): return mean_y + slope * (x - mean_x)
""",
    "a line of squares": """
xs[:] = [x * x for x in xs]
mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)
def guess(square): return mean_y + slope * (square - mean_x)
""",
}


def attempt(vm: vmfork.VM, idea: str) -> float:
    vm.run_code(idea, timeout_s=60, check=True)
    return float(vm.run_code("error(guess)", timeout_s=60, check=True).value or "inf")


def main() -> int:
    template = vmfork.Template.ensure("examples", recipe=RECIPE)
    with ExitStack() as stack:
        session = stack.enter_context(template.fork())
        for cell in CELLS:
            session.run_code(cell, timeout_s=60, check=True)
        forks = [stack.enter_context(vm) for vm in session.fork(len(IDEAS))]
        with ThreadPoolExecutor(len(forks)) as callers:
            errors = list(callers.map(attempt, forks, IDEAS.values()))
        for name, error in zip(IDEAS, errors, strict=True):
            print(f"{name}: {error:.3f}")
        best = min(range(len(forks)), key=errors.__getitem__)
        at_20 = forks[best].run_code("guess(20 * 20)", timeout_s=60, check=True).value
        # An idea changed the data, in its own machine.
        untouched = session.run_code("xs[-1]", timeout_s=60, check=True).value
    print(f"{list(IDEAS)[best]} is best, and says {float(at_20 or 'nan'):.0f} of 20; the session still has {untouched}")
    return 0 if list(IDEAS)[best] == "a line of squares" and untouched == "9.9" else 1


if __name__ == "__main__":
    sys.exit(main())
