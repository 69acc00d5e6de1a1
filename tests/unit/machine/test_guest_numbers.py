"""What a guest's kernel is said to say of processors and memory: it is the guest that says it."""

from __future__ import annotations

import pytest

from vmfork.errors import ProtocolError
from vmfork.machine.hotplug import parse_cpus, read_block_mib


class Guest:
    """Every file of it holds the same."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.most: int | None = None

    async def read_file(self, path: str, *, max_bytes: int | None, timeout_s: float | None) -> bytes:
        self.most = max_bytes
        return self.content


@pytest.mark.parametrize(
    ("text", "cpus"), [(b"0-3,5\n", {0, 1, 2, 3, 5}), (b"0\n", {0}), (b"\n", set()), (b"8191", {8191})]
)
def test_a_list_of_processors_is_read(text: bytes, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text",
    [b"0-9999999999", b"8192", b"3-1", b"1,1", b"2,1", b"-1", b"1-", b"a", b"0-3-5", b"1_0", b"0-1,1-2", b" 1, 2"],
)
def test_a_list_that_is_none_or_says_too_much_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a list of CPUs"):
        parse_cpus(text)


def test_a_long_list_of_long_spans_is_not_counted() -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_cpus(b",".join([b"0-8191"] * 10_000))
    assert len(str(refused.value)) < 200


async def test_a_size_of_a_block_is_read_of_so_many_bytes_at_most() -> None:
    guest = Guest(b"8000000\n")
    assert await read_block_mib(guest) == 128
    assert guest.most == 65_536


@pytest.mark.parametrize("content", [b"", b"x", b"-8000000", b"f" * 400, b"8 0"])
async def test_a_size_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        await read_block_mib(Guest(content))
