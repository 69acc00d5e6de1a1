"""Every request of the agent's has its rule in the broker: a client of one is told `unsupported` without."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def requests_in(path: str) -> set[str]:
    return set(re.findall(r"^ +\[(OP_\w+)\] = ", (ROOT / path).read_text(), re.MULTILINE))


def test_every_request_has_a_rule() -> None:
    assert requests_in("guest/request.c") - {"OP_HELLO"} == requests_in("broker/request.c")
