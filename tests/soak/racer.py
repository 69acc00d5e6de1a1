"""A program: builds, replaces, forks, sends, removes, sweeps one name. `python -m tests.soak.racer NAME SECONDS SEED`.

Others do the same meanwhile. Prints what it did as JSON: operation, outcome, how often. Whatever is not expected of a
name that others have their hands on ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from vmfork.aio import StoreBusy, Template, TemplateExists, TemplateNotFound, VMConfig, find_places
from vmfork.image.store import ImageStore
from vmfork.machine.folder import sweep_vms
from vmfork.store import TemplateStore

_EXPECTED = (StoreBusy, TemplateExists, TemplateNotFound)
LIMIT_S = 120.0


async def build(name: str) -> None:
    await Template.build(name, VMConfig())


async def replace(name: str) -> None:
    await Template.build(name, VMConfig(), replace=True)


async def fork(name: str) -> None:
    async with (await Template.open(name)).fork() as vm:
        result = await vm.exec(["hostname"], timeout_s=LIMIT_S, check=True)
        assert result.stdout.strip() == vm.hostname


async def remove(name: str) -> None:
    await (await Template.open(name)).remove()


async def travel(name: str) -> None:
    """It goes into a file, and out of it into its own place."""
    with TemporaryDirectory(prefix="vmfork-soak-") as folder:
        file = Path(folder) / "travel.tar"
        await (await Template.open(name)).save(file)
        await Template.load(file, name, replace=True)


async def sweep(_name: str) -> None:
    places = find_places()
    sweep_vms(places.vms)
    TemplateStore(places.templates).sweep()
    ImageStore(places.images).sweep()


# As often as they are worth: a build takes seconds, and while there is no template nothing can be forked.
_ACTS = {build: 3, replace: 3, fork: 12, remove: 1, sweep: 4, travel: 1}


async def race(name: str, seconds: float, seed: int) -> Counter[str]:
    """What was done until the time was over."""
    random, done, end = Random(seed), Counter[str](), time.monotonic() + seconds
    while time.monotonic() < end:
        (act,) = random.choices(list(_ACTS), list(_ACTS.values()))
        try:
            await act(name)
        except _EXPECTED as error:
            done[f"{act.__name__}: {type(error).__name__}"] += 1
        else:
            done[f"{act.__name__}: done"] += 1
    return done


if __name__ == "__main__":
    print(json.dumps(asyncio.run(race(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))))
