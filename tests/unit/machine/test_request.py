"""What is asked for in one fork, and what of it is refused."""

from __future__ import annotations

import pytest

from vmfork.adopt.identity import Identity
from vmfork.errors import ConfigError
from vmfork.machine.request import ForkRequest
from vmfork.wire.frame import PAYLOAD_LIMIT
from vmfork.wire.message import adopt_request


@pytest.mark.parametrize(
    "env",
    [
        {"BIG": "x" * (128 * 1024 - 4)},
        {"BIG": "é" * (64 * 1024)},
        {f"V{number}": "x" * 100_000 for number in range(3)},
        {f"V{number}": "" for number in range(20_000)},
    ],
    ids=["one", "one-in-bytes", "several", "many"],
)
def test_an_environment_that_is_too_large_is_refused_without_its_values(env) -> None:
    with pytest.raises(ConfigError, match="env") as error:
        ForkRequest(env=env)
    assert "files=" in error.value.hint
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "env",
    [
        {"BIG": "x" * (128 * 1024 - 5)},
        {f"V{number:05}": "" for number in range(7_900)},
        {f"V{number}": "x" * 100_000 for number in range(2)},
    ],
    ids=["one", "many", "several"],
)
def test_one_that_is_not_fits_into_the_request_and_its_answer(env) -> None:
    request = ForkRequest(env=env)
    items = Identity.fresh("0123456789ab", template="t" * 64).items(request.env)
    assert len(adopt_request(1, items)) < PAYLOAD_LIMIT
    answer = sum(len(item) + len("ok") + len(value.partition(b"=")[0]) + 12 for item, value in items)
    assert answer < PAYLOAD_LIMIT
