"""A fuzz campaign of forks: each input meets the target in a fresh fork of one machine, in which it is warm.

The target keeps state, and may crash: all inputs find it the same, whatever one has done to it. An input that reaches
a line which no other has reached is kept, and changed further.

python examples/fuzz.py [INPUTS]. The template stays for the next run: vmfork template rm examples
"""

from __future__ import annotations

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import vmfork

# An interpreter that every fork finds warm.
RECIPE = vmfork.Recipe(warm_up=("#!python\nimport json, random, unittest",))
# It reads `name=value;...`, counts in a global, and crashes where a list is closed that was never opened.
TARGET = """
import ctypes, json, sys
opened, reached = [], set()

def parse(text):
    for part in text.split(";"):
        name, _, value = part.partition("=")
        if value == "[":
            opened.append(name)
        elif value == "]":
            if not opened:
                ctypes.string_at(0)
            opened.pop()
        elif not name:
            raise ValueError("a value without a name")

def note(frame, event, _):
    if frame.f_code is not parse.__code__:
        return None
    reached.add(frame.f_lineno)
    return note

def attempt(text):
    sys.settrace(note)
    try:
        parse(text)
    except ValueError:
        pass
    finally:
        sys.settrace(None)
    return json.dumps(sorted(reached))
"""
SEEDS = ["a=1", "a=[;b=2;c=]"]
TOKENS = ["=", ";", "[", "]", "a", "1"]
# The campaign is the same on every host.
AT_ONCE = 2


class Outcome(NamedTuple):
    """What became of an input: which lines it reached, and how the target ended, if it did."""

    text: str
    reached: frozenset[int]
    crash: str


def attempt(fork: vmfork.VM, text: str) -> Outcome:
    with fork as vm:
        done = vm.run_code(f"print(attempt({text!r}))", timeout_s=60)
    crash = done.error.message if done.error else ""
    return Outcome(text, frozenset(() if crash else json.loads(done.stdout)), crash)


def change(chance: random.Random, text: str) -> str:
    """The text with a piece taken out, put in, or doubled."""
    start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    piece = chance.choice(["", chance.choice(TOKENS), text[start:end] * 2])
    return text[:start] + piece + text[end:]


def main(count: int) -> int:
    template = vmfork.Template.ensure("examples", recipe=RECIPE)
    chance, corpus, reached, crashes = random.Random(2), list(SEEDS), set(), {}
    with template.fork() as target, ThreadPoolExecutor(AT_ONCE) as callers:
        target.run_code(TARGET, timeout_s=60, check=True)
        for begun in range(0, count, AT_ONCE):
            texts = [change(chance, chance.choice(corpus)) for _ in range(min(AT_ONCE, count - begun))]
            for outcome in callers.map(attempt, target.fork(len(texts)), texts):
                if outcome.crash:
                    crashes.setdefault(outcome.crash, outcome.text)
                elif outcome.reached - reached:
                    reached |= outcome.reached
                    corpus.append(outcome.text)
    print(f"{count} inputs, {len(corpus) - len(SEEDS)} of them reached something new")
    for crash, text in crashes.items():
        print(f"{text!r}: {crash}")
    return 0 if crashes else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
