"""Tests in parts, in several test hosts at once: a host has one CPU, and whoever waits may have more."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING

from hosts.job import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1


def count_tests(arguments: Sequence[str]) -> Mapping[str, int]:
    """The files that `pytest ARGUMENT...` would run tests of, and how many of each."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *arguments]
    said = subprocess.run(argv, check=True, cwd=PROJECT, stdout=subprocess.PIPE, text=True).stdout
    return Counter(line.split("::")[0] for line in said.splitlines() if "::" in line)


def divide(counts: Mapping[str, int], parts: int) -> list[list[str]]:
    """At most `parts` lists of files, about as many tests in each. A file stays whole, for what its tests share."""
    divided: list[list[str]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for file in sorted(counts, key=lambda file: (-counts[file], file)):
        least = sizes.index(min(sizes))
        divided[least].append(file)
        sizes[least] += counts[file]
    return [part for part in divided if part]


def run_at_once(works: Sequence[Callable[[], int]]) -> int:
    """Each of `works` has ended, in a process of its own whose lines have its number before them.

    The first exit status that is not 0, in their order. On an error all of them are ended.
    """
    fork = multiprocessing.get_context("fork")
    processes, outputs = [], []
    try:
        for work in works:
            reader, writer = os.pipe()
            outputs.append(os.fdopen(reader, "rb"))
            processes.append(fork.Process(target=_run, args=(work, writer)))
            processes[-1].start()
            os.close(writer)
        _print_lines(outputs)
        for process in processes:
            process.join()
        return next((process.exitcode or 1 for process in processes if process.exitcode), 0)
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for output in outputs:
            output.close()


def _run(work: Callable[[], int], writer: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for fd in 1, 2:
        os.dup2(writer, fd)
    os.close(writer)
    sys.exit(work())


def _print_lines(outputs: Sequence[IO[bytes]]) -> None:
    with selectors.DefaultSelector() as open_ones:
        rests = [b""] * len(outputs)
        for number, output in enumerate(outputs):
            open_ones.register(output, selectors.EVENT_READ, number)
        while open_ones.get_map():
            for key, _ in open_ones.select():
                data = os.read(key.fd, 1 << 16)
                *lines, rest = (rests[key.data] + data).split(b"\n")
                if not data:
                    open_ones.unregister(key.fileobj)
                    lines, rest = [rest] if rest else [], b""
                rests[key.data] = rest
                for line in lines:
                    sys.stdout.buffer.write(b"%d| %s\n" % (key.data + 1, line))
                sys.stdout.buffer.flush()
