"""The exit statuses in the manual, in the entry point's own words, and in the code are the same."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from vmfork.cli import audit, factory, loop, main, status

MANUAL = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"

# What ExecError carries, as a shell has it: not executable, not found.
FROM_THE_GUEST = {126, 127}


def in_the_manual() -> set[int]:
    table = MANUAL.read_text().split("| exit status |")[1].split("\n\n")[0]
    first_column = "\n".join(row.split("|")[1] for row in table.splitlines()[1:])
    return {int(number) for number in re.findall(r"\d+", first_column)}


def in_the_entry_point() -> set[int]:
    return {int(number) for number in re.findall(r"(?<!\S)\d+(?=[ ,])", (main.__doc__ or "").split("```")[1])}


def in_the_code() -> set[int]:
    return {
        0,
        main._FAILED,
        main._WRONG_INPUT,
        main._INTERRUPTED,
        factory._OFF,
        audit.UNSAFE,
        status.TIME_LIMIT,
        status.OWN_FAILURE,
        status.PIPE_CLOSED,
        *(loop.Interrupted(number).exit_status for number in loop._STOPPING),
        *FROM_THE_GUEST,
    }


def test_the_three_tables_agree() -> None:
    assert in_the_manual() == in_the_code()
    assert in_the_entry_point() == in_the_code()


def test_statuses_of_signals_are_the_shells() -> None:
    assert main._INTERRUPTED == 128 + signal.SIGINT
    assert status.PIPE_CLOSED == 128 + signal.SIGPIPE
