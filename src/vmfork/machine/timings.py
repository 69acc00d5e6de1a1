"""How long a machine took to make, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long making a VM took, seconds, by phase.

    `spawn_s`: until the process was started. `answer_s`: from there to the agent's first answer (emulator start-up,
    loading state or booting, and the adopt request itself). Where `detailed_timings` or a tracer asked for it,
    `answer_s` has two parts: `load_s` until the guest answered at all, and `adopt_s`; else both are 0. `clock_s`:
    setting and checking the wall clock. `thaw_s`: watchers, files and hooks in the fork. `fit_s`: growing the fork to
    the size that was asked for. `total_s`: all of these together. `first_exec_s`: how long the first `exec` took, which
    is no part of the whole; 0 before it.
    """

    spawn_s: float
    answer_s: float
    clock_s: float
    thaw_s: float
    total_s: float
    fit_s: float = 0.0
    load_s: float = 0.0
    adopt_s: float = 0.0
    first_exec_s: float = 0.0
