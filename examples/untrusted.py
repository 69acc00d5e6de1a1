"""Code that nobody trusts, each piece in a machine of its own, with limits: on time, on output, on memory, no network.

The template stays for the next run: vmfork template rm examples
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import vmfork

# An interpreter that every fork finds warm.
RECIPE = vmfork.Recipe(warm_up=("#!python\nimport json, random, unittest",))
SLOW_S = 60.0


class Job(NamedTuple):
    """A piece of code, its limit of time, and how it ends."""

    code: str
    ends: str
    timeout_s: float = SLOW_S


JOBS = [
    Job("sum(range(10))", "45"),
    Job("1 / 0", "ZeroDivisionError"),
    Job("while True: pass", "DeadlineExceeded", timeout_s=1.0),
    Job("while True: print('x' * 999)", "LimitExceeded"),
    Job("bytearray(1 << 40)", "MemoryError"),
    Job("import os; os.abort()", "InterpreterEnded"),
    Job("import socket; socket.create_connection(('192.0.2.1', 80))", "OSError"),
    Job("import shutil; shutil.rmtree('/usr', ignore_errors=True)", "None"),
    Job("__import__('os').path.isdir('/usr/bin')", "True"),
]


def run(template: vmfork.Template, job: Job) -> str:
    with template.fork() as vm:
        try:
            done = vm.run_code(job.code, timeout_s=job.timeout_s, max_output=100_000)
        except (vmfork.DeadlineExceeded, vmfork.LimitExceeded) as error:
            return type(error).__name__
        return done.error.type if done.error else str(done.value)


def main() -> int:
    template = vmfork.Template.ensure("examples", recipe=RECIPE)
    with ThreadPoolExecutor(os.cpu_count()) as callers:
        ends = list(callers.map(lambda job: run(template, job), JOBS))
    for job, end in zip(JOBS, ends, strict=True):
        print(f"{job.code[:60]:60} {end}")
    wrong = [job.code for job, end in zip(JOBS, ends, strict=True) if end != job.ends]
    print(f"{len(JOBS)} pieces, {len(wrong)} of which ended otherwise than they should")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
