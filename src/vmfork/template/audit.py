"""Proof by trial: forks of a template are compared. Some things must differ in them, others must be the same."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.errors import ConfigError, DeadlineExceeded
from vmfork.hypervisor.qemu import board_of
from vmfork.progress import Progress, ignore_progress
from vmfork.template.probes import PROBES, Probe
from vmfork.units import format_count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vmfork.hypervisor.qemu import Board
    from vmfork.machine.result import ExecResult
    from vmfork.progress import ProgressListener
    from vmfork.store import Manifest

Verdict = Literal["ok", "unsafe", "absent", "failed"]

_LEAST_FORKS = 2
_PROBE_LIMIT_S = 30.0
_SHOWN = 60  # characters of a value in a detail
_BITS, _MOST_TOLD = re.compile(r"[0-9]{1,9}", re.ASCII), 64
# The kernel's generator is seeded with this many bits; it never reports more.
_ENTROPY_BITS = 256
_SWITCHED_OFF = {
    "both": "",
    "agent": "vmgenid",
    "vmgenid": "the agent's reseed",
    "none": "vmgenid and the agent's reseed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One finding. `expect` is `differs`, `same`, or the bound that was measured against.

    `verdict` is `ok`; `unsafe` when forks are alike where they must differ, or differ where they must not, or a bound
    is exceeded; `absent` when these machines have no such thing; `failed` when the probe itself failed. `values` has
    one for each fork.
    """

    name: str
    expect: str
    verdict: Verdict
    detail: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit of `forks` forks of one template found. `safe` when no row is `unsafe` or `failed`."""

    template: str
    generation: str
    forks: int
    rows: tuple[AuditRow, ...]

    @property
    def safe(self) -> bool:
        return all(row.verdict in ("ok", "absent") for row in self.rows)


class Fork(Protocol):
    """What an audit needs of a machine."""

    async def shell(self, script: str, *, timeout_s: float | None) -> ExecResult: ...

    async def read_file(self, path: str, *, max_bytes: int | None) -> bytes: ...

    async def measure_clock_skew(self) -> float: ...

    async def aclose(self) -> None: ...


async def audit_template(
    manifest: Manifest,
    fork_many: Callable[[int], Awaitable[Sequence[Fork]]],
    count: int,
    probes: Sequence[Probe] = (),
    *,
    progress: ProgressListener = ignore_progress,
) -> AuditReport:
    """`count` forks were made, probed side by side, and closed. Raises what a fork raises."""
    if count < _LEAST_FORKS:
        raise ConfigError("count", count, "an audit compares forks", hint=f"give {_LEAST_FORKS} or more")
    wanted = (*PROBES, *probes)
    async with AsyncExitStack() as owned:
        progress(Progress(task="audit", step=f"forking {count} machines of {manifest.name!r}", fraction=0.0))
        vms = await fork_many(count)
        for vm in vms:
            owned.push_async_callback(vm.aclose)
        rows = []
        for done, probe in enumerate(wanted):
            progress(Progress(task="audit", step=f"comparing {probe.name}", fraction=done / len(wanted)))
            rows.append(await _compare(probe, vms))
        rows += [await _measure_clock(vms), await _measure_entropy(vms)]
    progress(Progress(task="audit", step="done", fraction=1.0))
    return AuditReport(
        template=manifest.name,
        generation=manifest.generation,
        forks=count,
        rows=(*_read_manifest(manifest), *rows),
    )


def check_probes(added: Sequence[Probe]) -> None:
    """Raises `ConfigError` when one of them is no probe, or has the name of another."""
    for probe in added:
        if not isinstance(probe, Probe):
            raise ConfigError("probes", probe, f"{probe!r} is not a Probe", hint="give Probe(name=..., command=...)")
    names = [probe.name for probe in (*PROBES, *added)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError("probes", twice, f"there are two probes named {twice}", hint="give yours another name")


async def _compare(probe: Probe, vms: Sequence[Fork]) -> AuditRow:
    try:
        results = await asyncio.gather(*(vm.shell(probe.command, timeout_s=_PROBE_LIMIT_S) for vm in vms))
    except DeadlineExceeded as error:
        return AuditRow(name=probe.name, expect=probe.expect, verdict="failed", detail=str(error))
    failed = next((result for result in results if not result.ok), None)
    if failed is not None:
        said = f": {failed.stderr.strip()[-_SHOWN:]}" if failed.stderr.strip() else ""
        detail = f"exit status {failed.exit_code}{said}"
        return AuditRow(name=probe.name, expect=probe.expect, verdict="failed", detail=detail)
    return judge(probe, [" ".join(result.stdout.split()) for result in results])


def judge(probe: Probe, values: Sequence[str]) -> AuditRow:
    """The finding for these values, one from each fork."""
    distinct = len(set(values))
    verdict: Verdict = "ok"
    if not any(values):
        verdict, detail = "absent", "nothing of the kind in these machines"
    elif probe.expect == "differs":
        detail = f"{distinct} distinct of {len(values)}"
        if distinct < len(values):
            verdict, detail = "unsafe", f"{detail}: {probe.hazard}" if probe.hazard else detail
    elif distinct == 1:
        detail = f"the same in all: {_shorten(values[0])}"
    else:
        verdict, detail = "unsafe", f"{distinct} different values" + (f": {probe.hazard}" if probe.hazard else "")
    return AuditRow(name=probe.name, expect=probe.expect, verdict=verdict, detail=detail, values=tuple(values))


async def _measure_clock(vms: Sequence[Fork]) -> AuditRow:
    """The clocks are read last, one fork after the other: what the rest of the audit did to them counts too."""
    bounds = [await _best_skew(vm) for vm in vms]
    worst = max(bounds)
    return AuditRow(
        name="clock",
        expect=f"within {SKEW_LIMIT_S * 1000:g} ms",
        verdict="ok" if worst <= SKEW_LIMIT_S else "unsafe",
        detail=f"at most {worst * 1000:.1f} ms from the host's, round trip included",
        values=tuple(f"{bound:.6f}" for bound in bounds),
    )


async def _best_skew(vm: Fork) -> float:
    """The best bound of five. A slow answer makes the bound loose; it does not make the clock wrong."""
    return min([await vm.measure_clock_skew() for _ in range(5)])


async def _measure_entropy(vms: Sequence[Fork]) -> AuditRow:
    said = [await vm.read_file("/proc/sys/kernel/random/entropy_avail", max_bytes=_MOST_TOLD) for vm in vms]
    counts = [text.decode(errors="replace").strip() for text in said]
    least = min(int(count) if _BITS.fullmatch(count) else 0 for count in counts)
    return AuditRow(
        name="entropy",
        expect=f"{_ENTROPY_BITS} bits",
        verdict="ok" if least >= _ENTROPY_BITS else "unsafe",
        detail=f"the kernel's generator holds {least} bits",
        values=tuple(counts),
    )


def _read_manifest(manifest: Manifest) -> list[AuditRow]:
    """What the template itself says of its forks, whatever they show."""
    reseed = manifest.traits["reseed"]
    rows = [
        _judge_reseed(reseed, board_of(manifest.traits["machine"])),
        AuditRow(
            name="watchers",
            expect="all renewed",
            verdict="ok" if manifest.watchers else "absent",
            detail=f"{format_count(len(manifest.watchers), 'program')} told of every fork to renew random numbers"
            if manifest.watchers
            else "no program in this template registered one",
            values=manifest.watchers,
        ),
    ]
    named = (*manifest.secret_paths, *manifest.secret_env)
    if named:
        rows.append(
            AuditRow(
                name="secrets",
                expect="none",
                verdict="unsafe" if manifest.secrets_found else "ok",
                detail=f"allowed to stay: {', '.join(manifest.secrets_found)}"
                if manifest.secrets_found
                else f"none of the {len(named)} named was there",
                values=manifest.secrets_found,
            )
        )
    return rows


def _judge_reseed(reseed: str, board: Board) -> AuditRow:
    off, there = _SWITCHED_OFF[reseed], "vmgenid and the agent's reseed"
    if reseed == "agent" and not board.has_vmgenid:
        off, there = "", f"the agent's reseed; the machine {board.kind} has no vmgenid"
    return AuditRow(
        name="reseed",
        expect="both" if board.has_vmgenid else "agent",
        verdict="unsafe" if off else "ok",
        detail=f"{off} was switched off when this template was built" if off else there,
        values=(reseed,),
    )


def _shorten(value: str) -> str:
    return value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
