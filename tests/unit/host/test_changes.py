"""What leaves a folder wakes who watches it."""

from __future__ import annotations

import asyncio

import pytest

from vmfork.host.changes import DepartureWatch

LIMIT_S = 30.0


@pytest.mark.parametrize("leave", [lambda path: path.rmdir(), lambda path: path.rename(path.parent.parent / "gone")])
async def test_a_departure_wakes_before_the_time_is_up(tmp_path, leave) -> None:
    folder = tmp_path / "watched"
    (folder / "one").mkdir(parents=True)
    with DepartureWatch.open(folder) as watch:
        leave(folder / "one")  # before anybody waits: it is not missed
        async with asyncio.timeout(LIMIT_S):
            await watch.wait(10 * LIMIT_S)
        waiting = asyncio.ensure_future(watch.wait(10 * LIMIT_S))
        (folder / "two").mkdir()
        (folder / "two").rmdir()
        async with asyncio.timeout(LIMIT_S):
            await waiting


async def test_nothing_leaves_and_the_time_passes(tmp_path) -> None:
    with DepartureWatch.open(tmp_path) as watch:
        (tmp_path / "new").mkdir()
        await watch.wait(0.01)
    watch.close()


async def test_a_folder_that_cannot_be_watched_takes_the_time(tmp_path) -> None:
    with DepartureWatch.open(tmp_path / "missing") as watch:
        await watch.wait(0.01)
