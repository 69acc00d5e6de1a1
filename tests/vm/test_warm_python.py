"""Forks of a warm interpreter draw different numbers, wherever from."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import AdoptError

pytestmark = pytest.mark.vm

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "warm-python.md"

# Every source has been drawn from before the freeze, OpenSSL in two threads.
SERVER = """
import json, os, random, secrets, ssl, sys, tempfile, uuid
from concurrent.futures import ThreadPoolExecutor
try:
    import numpy
except ImportError:
    numpy = None
import vmfork_guest

pool = ThreadPoolExecutor(1)

def draw():
    return {
        "random": random.random(),
        "secrets": secrets.token_hex(16),
        "uuid4": str(uuid.uuid4()),
        "uuid1 node": uuid.uuid1().node,
        "ssl": ssl.RAND_bytes(16).hex(),
        "ssl of a thread": pool.submit(ssl.RAND_bytes, 16).result().hex(),
        "tempfile": next(tempfile._get_candidate_names()),
        "numpy": numpy and float(numpy.random.rand()),
    }

draw()
if "watch" in sys.argv:
    vmfork_guest.watch()
if "fail" in sys.argv:
    @vmfork_guest.on_fork
    def renew(generation):
        raise LookupError("no key for " + generation)
os.mkfifo("/run/ask")
os.mkfifo("/run/answer")
while True:
    open("/run/ask").read()
    with open("/run/answer", "w") as answer:
        json.dump(draw(), answer)
"""

KERNELS = {"secrets", "uuid4"}
OF_THE_PROCESS = {"random", "uuid1 node", "ssl", "ssl of a thread", "tempfile"}


async def build(name: str, *arguments: str) -> Template:
    start = f"setsid --fork python3 /root/server.py {' '.join(arguments)} > /root/server.log 2>&1"
    warm_up = [f"cat > /root/server.py <<'END'\n{SERVER}END", start]
    return await Template.build(name, VMConfig(), warm_up=warm_up, ready="test -p /run/answer", ready_timeout_s=60)


async def draw(vm: VM) -> dict[str, object]:
    result = await vm.shell("echo > /run/ask; cat /run/answer", timeout_s=60, check=True)
    return json.loads(result.stdout)


async def draws_of_forks(template: Template, count: int) -> list[dict[str, object]]:
    vms = await template.fork_many(count)
    try:
        return await asyncio.gather(*map(draw, vms))
    finally:
        await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_forks_of_a_process_that_watches_draw_apart(template_name) -> None:
    template = await build("warm", "watch")
    try:
        draws = await draws_of_forks(template, 16)
    finally:
        await template.remove()
    assert draws[0].keys() == KERNELS | OF_THE_PROCESS | {"numpy"}
    for source in draws[0]:
        values = {draw[source] for draw in draws}
        assert len(values) == 16 or values == {None}, source  # None: not installed


async def test_forks_of_a_process_that_does_not_watch_draw_the_same(template_name) -> None:
    template = await build("cold")
    try:
        one, two = await draws_of_forks(template, 2)
    finally:
        await template.remove()
    assert {source for source in KERNELS | OF_THE_PROCESS if one[source] == two[source]} == OF_THE_PROCESS


@pytest.mark.kvm
async def test_a_process_that_cannot_renew_itself_fails_the_fork(template_name) -> None:
    template = await build("failing", "watch", "fail")
    try:
        with pytest.raises(AdoptError, match=r"watcher \d+\.[0-9a-f]+.*renew: LookupError: no key for [0-9a-f]{32}"):
            await template.fork()
    finally:
        await template.remove()


async def test_the_programs_of_the_guide_run_as_they_are(template_name) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (shown,) = re.findall(r"```\n(.*?)```", GUIDE.read_text().split("```python")[1].split("```", 1)[1], re.DOTALL)
    said = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(said):
            exec(compile(program, str(GUIDE), "exec"), {})

    await asyncio.to_thread(run)
    one, two = (line.split() for line in said.getvalue().splitlines())
    assert [len(one), len(two)] == [len(line.split()) for line in shown.splitlines()] == [6, 6]
    assert all(ones != twos for ones, twos in zip(one[:3], two[:3], strict=True))
    # What the module's own generator drew: three numbers below 100.
    assert one[3:] != two[3:]
