"""The time stamp counter: the kernel's word for whether it is steady, and its rate as the keeper measures it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.errors import HostError
from vmfork.host import tsc
from vmfork.host.keeper import find_keeper


@pytest.mark.parametrize(
    ("flags", "steady"),
    [
        ("fpu tsc constant_tsc nonstop_tsc", True),
        ("fpu tsc constant_tsc", False),
        ("fpu tsc nonstop_tsc", False),
        ("fpu tsc xconstant_tsc nonstop_tscx", False),
        ("", False),
    ],
)
def test_both_flags_make_it_steady(flags, steady) -> None:
    assert tsc.has_steady_tsc(f"processor\t: 0\nmodel name\t: flags\nflags\t\t: {flags}\nbugs\t\t: tsc\n") == steady


def test_a_processor_that_tells_nothing_has_none() -> None:
    assert not tsc.has_steady_tsc("")


def test_the_rate_is_the_same_each_time_and_the_kernels() -> None:
    need("steady-tsc", found=tsc.has_steady_tsc())
    rates = [int(subprocess.run([find_keeper(), "tsc-rate"], capture_output=True, check=True).stdout) for _ in range(3)]
    assert max(rates) - min(rates) <= max(rates) * 20e-6
    # Two of the delay loop's rounds are a tick of the TSC (Linux, init/calibrate.c); that was found out in a hurry.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    bogomips = next(float(line.split(":")[1]) for line in lines if line.startswith("bogomips"))
    assert tsc.measure_tsc_khz() == pytest.approx(bogomips * 500, rel=0.01)


def test_a_keeper_that_cannot_tell_is_an_error(monkeypatch, tmp_path) -> None:
    keeper = tmp_path / "keeper"
    keeper.write_text("#!/bin/sh\necho this processor has no TSC >&2\nexit 1\n")
    keeper.chmod(0o755)
    monkeypatch.setattr(tsc, "find_keeper", lambda: keeper)
    tsc.measure_tsc_khz.cache_clear()
    with pytest.raises(HostError, match="TSC cannot be measured") as refused:
        tsc.measure_tsc_khz()
    assert "has no TSC" in refused.value.details()
    tsc.measure_tsc_khz.cache_clear()
