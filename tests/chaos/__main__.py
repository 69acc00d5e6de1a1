"""`python -m tests.chaos`: operations in which somebody is killed, stopped or refused, or the clock jumps."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.chaos import aftermath, runs
from tests.chaos.lives import CRASH_WHEN_ADOPTED, OLD
from tests.chaos.runs import REFUSED, STEPPED
from tests.chaos.troubles import TROUBLES
from tests.stepped_clock import SteppedClock
from tests.unit.image.test_build import MEMBERS
from vmfork.aio import Template, VMConfig, find_places
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.image.store import ImageStore
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.runs import Instance, Result, Step

KILL, STOP = "SIGKILL", "SIGSTOP"
_MACHINE = (("library", KILL), ("keeper", KILL), ("qemu", KILL), ("guest", "crash"))
_STOPPED = (("qemu", STOP), ("keeper", STOP))
_HOST = (("host", REFUSED), ("clock", STEPPED))
# Who takes part in what, and how much of all runs it gets: those that boot a guest take seconds.
PLAN: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {
    "fork": (5, (*_MACHINE, *_STOPPED, *_HOST)),
    "adopt": (5, (*_MACHINE, *_STOPPED, *_HOST)),
    "exec": (4, (*_MACHINE, *_STOPPED, *_HOST)),
    "hand-over": (5, (*_MACHINE, *_STOPPED, *_HOST)),
    "detach": (4, (*_MACHINE, *_STOPPED, *_HOST)),
    "start": (4, (*_MACHINE, ("broker", KILL), *_STOPPED, *_HOST)),
    "network": (4, (*_MACHINE, *_STOPPED, *_HOST)),
    "left": (4, (("library", KILL), ("broker", KILL), ("forwarder", KILL), ("forwarder", STOP), *_HOST)),
    "branch": (3, (*_MACHINE, ("copier", KILL), ("copier", STOP), *_HOST)),
    "disk": (3, (*_MACHINE, ("copier", KILL), ("copier", STOP), *_HOST)),
    "disk-kept": (2, (("library", KILL), ("keeper", KILL), ("qemu", KILL), ("copier", KILL), *_HOST)),
    "inside": (2, (("library", KILL), ("keeper", KILL), ("qemu", KILL), ("copier", KILL), *_HOST)),
    "freeze": (2, (*_MACHINE, ("copier", KILL), *_HOST)),
    "roll-back": (3, (*_MACHINE, ("copier", KILL), *_HOST)),
    "revive": (3, (*_MACHINE, ("broker", KILL), ("copier", KILL), *_HOST)),
    "connect": (4, (*_MACHINE, ("broker", KILL), ("broker", STOP), *_HOST)),
    "build": (3, (*_MACHINE, *_HOST)),
    "replace": (3, (*_MACHINE, *_HOST)),
    "layers": (3, (*_MACHINE, *_HOST)),
    "remove": (1, (("library", KILL), *_HOST)),
    "image": (3, (("library", KILL), ("mmdebstrap", KILL), *_HOST)),
    "travel": (3, (("library", KILL), *_HOST)),
    "image-travel": (2, (("library", KILL), *_HOST)),
    "take": (3, (("library", KILL), ("keeper", KILL), ("qemu", KILL), ("server", KILL), *_HOST)),
    "serve": (3, (("library", KILL), ("keeper", KILL), ("qemu", KILL), *_HOST)),
    "sweep": (1, (("library", KILL), *_HOST)),
}
_TROUBLED_SHARE = 0.2


def main() -> int:
    asked = _arguments()
    runs.become_subreaper()
    begun, results = time.time(), []
    with _instance() as tar, tempfile.TemporaryDirectory(prefix="vmfork-chaos-programs-") as folder:
        programs = Path(folder)
        _write_mmdebstrap(programs, tar)
        dying = f"{asked.template}-dies"
        asyncio.run(Template.ensure(asked.template, VMConfig()))
        instance = runs.Instance(asked.template, dying, runs.environ_of(asked.template), SteppedClock(programs))
        for result in _all(instance, asked, images=tar.with_name("images"), programs=programs):
            results.append(result)
            _show(len(results), asked.count, result)
            if time.time() - begun > asked.limit_s:
                break
        asyncio.run(_clear(dying, OLD))
    _report(asked, results, begun)
    return int(any(result.wrong for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many runs")
    parser.add_argument("--seed", type=int, default=1, help="two runs of one seed strike at the same steps")
    parser.add_argument("--only", action="append", choices=[*PLAN, *TROUBLES], help="this operation or trouble alone")
    parser.add_argument(
        "--quick", action="store_true", help="nobody is stopped: that ends by time limits of 20 s or more"
    )
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no run is begun after so many seconds")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--template", default="chaos", help="what is forked; built where it is missing")
    return parser.parse_args()


@contextmanager
def _instance() -> Iterator[Path]:
    """A runtime folder of our own, unless the environment names one, and the tar that the image is made of.

    As root it is a file system of its own, so that it can be full.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmfork-chaos-", dir="/dev/shm"))
    own = folder / "run"
    own.mkdir(mode=0o700)
    is_own = os.environ.setdefault("VMFORK_RUNTIME_DIR", str(own)) == str(own)
    mounted = is_own and mount_tmpfs(own, size_bytes=64 << 20)
    tar = folder / "root.tar"
    with tarfile.open(tar, "w") as file:
        for name, body in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    try:
        yield tar
    finally:
        if is_own:
            asyncio.run(_clear(*TemplateStore(find_places().templates).list_names()))
        if mounted:
            unmount(own)
        shutil.rmtree(folder)


def _write_mmdebstrap(programs: Path, tar: Path) -> None:
    """What stands in for it knows its tar by itself: of our environment it gets nothing."""
    script = Path(__file__).with_name("bin") / "mmdebstrap"
    stand_in = programs / script.name
    stand_in.write_text(script.read_text().replace('"$CHAOS_TAR"', shlex.quote(str(tar))))
    stand_in.chmod(0o755)


async def _clear(*names: str) -> None:
    for name in names:
        if aftermath.generation_of(name) is not None:
            await (await Template.open(name)).remove()


def _all(instance: Instance, asked: argparse.Namespace, *, images: Path, programs: Path) -> Iterator[Result]:
    random = Random(asked.seed)
    options = {"images": str(images), "programs": str(programs)}
    steps: dict[str, list[Step]] = {}
    for life, participant, deed in _schedule(asked, random):
        if life in ("replace", "remove") and aftermath.generation_of(OLD) is None:
            asyncio.run(Template.build(OLD, VMConfig()))
        if participant == "guest" and aftermath.generation_of(instance.dying) is None:
            asyncio.run(Template.build(instance.dying, VMConfig(), warm_up=[CRASH_WHEN_ADOPTED]))
        seed = random.randrange(1 << 30)
        if deed in TROUBLES:
            result = runs.trouble(instance, life, deed, seed=seed, options=options)
            if result is None:
                sys.stderr.write(f"not tried: this host cannot have {deed}\n")
                continue
            yield result
            continue
        if life not in steps:
            steps[life] = runs.count_steps(instance, life, options)
            if life == "remove":
                asyncio.run(Template.build(OLD, VMConfig()))
        yield runs.strike(instance, life, participant, deed, steps[life], seed=seed, options=options)
        if life in ("image", "image-travel"):
            ImageStore(images).sweep()
            assert not [path for path in images.iterdir() if path.name.startswith(".staging")], "a build was left"


def _schedule(asked: argparse.Namespace, random: Random) -> list[tuple[str, str, str]]:
    """Which life, whom, and what: shares as planned, in an order that mixes them."""
    count, only = asked.count, asked.only
    struck = [(life, *plan) for life, plan in PLAN.items() if not only or life in only]
    tried = {name: lives for name, (_, lives) in TROUBLES.items() if not only or name in only}
    troubles = [(life, "host", name) for name, lives in tried.items() for life in lives]
    troubled = round(count * (_TROUBLED_SHARE if struck else 1)) if troubles else 0
    whole = sum(weight for _, weight, _ in struck)
    chosen = [troubles[place % len(troubles)] for place in range(troubled)]
    for life, weight, all_cast in struck:
        cast = [each for each in random.sample(all_cast, len(all_cast)) if each[1] != STOP or not asked.quick]
        share = max(1, round((count - troubled) * weight / whole))
        chosen += [(life, *cast[place % len(cast)]) for place in range(share)]
    random.shuffle(chosen)
    return chosen[:count]


def _show(done: int, count: int, result: Result) -> None:
    where = f"{result.life}: {result.participant} {result.deed} at {result.step}"
    sys.stderr.write(f"[{done}/{count}] {result.outcome} {result.seconds} s  {where}  {result.said[:120]}\n")
    for wrong in result.wrong:
        sys.stderr.write(f"    {wrong}\n")


def _report(asked: argparse.Namespace, results: list[Result], begun: float) -> None:
    outcomes = ("well", "error", "killed", "unmet", "failed")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        counts.setdefault((result.life, f"{result.participant} {result.deed}"), Counter())[result.outcome] += 1
    print(f"| operation | who, and how | runs | {' | '.join(outcomes)} |")
    print("| --- | --- | --- |" + " --- |" * len(outcomes))
    for (life, who), count in sorted(counts.items()):
        print(f"| {life} | {who} | {count.total()} | {' | '.join(str(count[each]) for each in outcomes)} |")
    steps = len({(result.life, result.step) for result in results if result.deed not in TROUBLES})
    failed = sum(bool(result.wrong) for result in results)
    print(f"\n{len(results)} runs at {steps} named steps, {failed} failed, in {time.time() - begun:.0f} s.")
    if asked.json:
        document = {"seed": asked.seed, "begun": begun, "results": [asdict(result) for result in results]}
        asked.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
