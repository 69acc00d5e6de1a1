"""What forks must not share: by each defence alone, by both, and, to know that the tests can fail, by none."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.reseeding import JUST_RESEEDED
from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.aio import VM, Template
from vmfork.config import VMConfig, find_places
from vmfork.errors import ConfigError, StoreBusy
from vmfork.store import TemplateStore
from vmfork.template.probes import PROBES, Probe

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

# On one CPU, as in a test host, sixteen take longer than a fork may, and guests that boot side by side than a boot.
HAS_SEVERAL_CPUS = (os.cpu_count() or 1) > 1
FORKS = 16 if HAS_SEVERAL_CPUS else 4
IDENTITY_PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "identity.md"


@pytest.fixture(scope="module")
def by_defence(template_name):
    """Templates whose forks are reseeded by the agent alone, by vmgenid alone, or not at all, of both kinds of machine.

    They are built side by side: where nothing reseeds, half a minute is waited for.
    """
    wanted = {
        "agent": (VMConfig(reseed="agent"), ()),
        "vmgenid": (VMConfig(reseed="vmgenid"), ()),
        "none": (VMConfig(reseed="none"), JUST_RESEEDED),
        "none-micro": (VMConfig(reseed="none", machine="microvm"), JUST_RESEEDED),
    }

    async def build() -> list[Template]:
        turns = asyncio.Semaphore(len(wanted) if HAS_SEVERAL_CPUS else 1)

        async def build_one(who: str) -> Template:
            config, warm_up = wanted[who]
            async with turns:
                return await Template.build(f"reseed-{who}", config, warm_up=warm_up)

        return await asyncio.gather(*(build_one(who) for who in wanted))

    templates = dict(zip(wanted, asyncio.run(build()), strict=True))
    yield templates
    for template in templates.values():
        asyncio.run(template.remove())


@pytest.fixture(params=["both", "agent", pytest.param("vmgenid", marks=pytest.mark.qemu)])
def reseeded(request, by_defence, template):
    """A template whose forks are reseeded so."""
    return by_defence.get(request.param, template)


@pytest.fixture
def unsafe(by_defence) -> Template:
    """A template whose forks are not reseeded at all."""
    return by_defence["none"]


async def first_draws(template: Template, count: int) -> tuple[list[VM], list[bytes]]:
    """That many forks made at once, each asked for random bytes as the first thing it does."""

    async def fork_and_draw() -> tuple[VM, bytes]:
        vm = await template.fork()
        return vm, (await vm.exec(["head", "-c", "64", "/dev/urandom"], check=True)).stdout_bytes

    made = await asyncio.gather(*(fork_and_draw() for _ in range(count)))
    return [vm for vm, _ in made], [draw for _, draw in made]


async def test_forks_made_at_once_share_nothing(request, reseeded) -> None:
    assert reseeded.manifest.traits["reseed"] == request.node.callspec.params["reseeded"]
    vms, draws = await first_draws(reseeded, FORKS)
    try:
        assert {len(draw) for draw in draws} == {64}
        assert len(set(draws)) == FORKS
        for command in (
            "cat /etc/machine-id",
            "hostname",
            "cat /proc/sys/kernel/random/boot_id",
            "cat /run/vmfork/generation",
        ):
            said = await asyncio.gather(*(vm.shell(command, check=True) for vm in vms))
            assert len({result.stdout for result in said}) == FORKS, command
    finally:
        await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_without_any_reseed_forks_draw_the_same(unsafe) -> None:
    vms, draws = await first_draws(unsafe, 3)
    await asyncio.gather(*(vm.aclose() for vm in vms))
    assert len(set(draws)) == 1


async def test_forks_of_a_microvm_that_no_agent_reseeds_draw_the_same(by_defence) -> None:
    vms, draws = await first_draws(by_defence["none-micro"], 4)
    await asyncio.gather(*(vm.aclose() for vm in vms))
    # One may be so late that the kernel has reseeded itself.
    assert len(set(draws)) < len(draws)


async def test_a_template_without_reseed_is_no_match_for_a_request(unsafe, template) -> None:
    assert (await Template.ensure(unsafe.name, VMConfig(reseed="none"))).generation == unsafe.generation
    assert (await Template.ensure(template.name, VMConfig())).generation == template.generation
    # A request for a safe one builds it anew, and the other way round; that it would is all that is tried here.
    for name, config in ((unsafe.name, VMConfig()), (template.name, VMConfig(reseed="agent"))):
        with pytest.raises(StoreBusy, match=name):
            async with await TemplateStore(find_places().templates).stage(name, memory_bytes=1 << 20, replace=True):
                await Template.ensure(name, config, wait_s=0)


async def test_an_audit_of_a_sound_template_is_clean(template) -> None:
    report = await template.audit(3)
    assert report.safe, report
    found = {row.name: row for row in report.rows}
    assert len(set(found["urandom"].values)) == 3
    assert found["cpu-count"].values == ("1", "1", "1")
    assert found["clock"].verdict == found["entropy"].verdict == "ok"
    assert await VM.list() == []


async def test_an_audit_tells_a_template_without_reseed(unsafe) -> None:
    report = await unsafe.audit(2)
    assert not report.safe
    bad = {row.name for row in report.rows if row.verdict == "unsafe"}
    assert {"reseed", "urandom", "getrandom"} <= bad
    told = await asyncio.to_thread(vmfork, "template", "audit", unsafe.name, "-n", "2")
    assert told.status == 4
    assert "vmgenid and the agent's reseed was switched off when this template was built" in told.out
    assert told.out.splitlines()[-1].startswith(f"template {unsafe.name}: 2 forks, NOT safe: reseed, urandom")


async def test_probes_of_ones_own(template) -> None:
    report = await template.audit(
        2,
        probes=[
            Probe(name="marker", command="cat /root/marker"),
            Probe(name="warm", command="cat /root/marker", expect="same"),
            Probe(name="none", command="true"),
            Probe(name="broken", command="echo why >&2; exit 3"),
            Probe(name="name", command="hostname", expect="same", hazard="it moved"),
        ],
    )
    found = {row.name: (row.verdict, row.detail) for row in report.rows}
    assert found["marker"] == ("unsafe", "1 distinct of 2")
    assert found["warm"] == ("ok", "the same in all: warm")
    assert found["none"][0] == "absent"
    assert found["broken"] == ("failed", "exit status 3: why")
    assert found["name"] == ("unsafe", "2 different values: it moved")


@pytest.mark.parametrize("count", [1, 0, -3, "4", True])
async def test_an_audit_needs_forks_to_compare(template, count) -> None:
    with pytest.raises(ConfigError):
        await template.audit(count)


async def test_a_probe_may_not_hide_a_built_in_one(template) -> None:
    with pytest.raises(ConfigError, match="urandom"):
        await template.audit(2, probes=[Probe(name="urandom", command="true")])


def read_identity_table() -> dict[str, str]:
    """Probe -> `differs`, `same` or `none`, as the page on identity promises."""
    rows = [line.split("|") for line in IDENTITY_PAGE.read_text().splitlines() if line.startswith("| `")]
    return {row[1].strip().strip("`"): row[2].strip() for row in rows}


@pytest.mark.qemu
async def test_the_table_of_identity_is_true(template) -> None:
    promised = read_identity_table()
    assert set(promised) == {probe.name for probe in PROBES}
    report = await template.audit(3)
    rows = {row.name: row for row in report.rows}
    if template.hardware.accel != "tcg":
        promised["address-layout"] = "differs"  # the table says so too
    for name, promise in promised.items():
        if promise == "none":
            assert rows[name].verdict == "absent", name
        else:
            assert len(set(rows[name].values)) == (3 if promise == "differs" else 1), name


MONTH_S = 30 * 24 * 3600


@pytest.mark.qemu
async def test_the_clock_after_a_long_freeze(template) -> None:
    """The template was frozen a month ago, as far as the host's clock can tell."""

    def in_a_month() -> int:
        return time.time_ns() + MONTH_S * 10**9

    base = await template._source.fork_base()
    async with VM(*await base.adopt(timeout_s=30, clock=in_a_month)) as vm:
        before = time.time() + MONTH_S
        told = float((await vm.exec(["date", "+%s.%N"], check=True)).stdout)
        assert before - SKEW_LIMIT_S <= told <= time.time() + MONTH_S + SKEW_LIMIT_S
        assert vm.adoption.skew_bound_s <= SKEW_LIMIT_S
        frozen_at, now = (await vm.shell("cat /root/uptime /proc/uptime", check=True)).stdout.splitlines()
        elapsed_s = float(now.split()[0]) - float(frozen_at.split()[0])
        assert 0 <= elapsed_s < 60  # CLOCK_MONOTONIC goes on where it stopped, neither back nor a month ahead


async def test_a_certificate_of_today_is_valid_after_a_long_freeze(template) -> None:
    """What hurts most: TLS that calls a certificate 'not yet valid' because the guest lives in the past."""
    day_s = 86_400

    def in_a_month() -> int:
        return time.time_ns() + MONTH_S * 10**9

    script = "import sys, time; a, b = map(float, sys.argv[1:]); sys.exit(not a <= time.time() <= b)"
    valid_from = time.time() + MONTH_S - 60
    window = [str(valid_from), str(valid_from + day_s)]
    base = await template._source.fork_base()
    async with VM(*await base.adopt(timeout_s=30, clock=in_a_month)) as vm:
        assert (await vm.exec(["python3", "-c", script, *window])).ok


# A process that was warm at the freeze, with one timer of each kind, all due in an hour. Asked, it tells of each.
TIMERS = """
import json, os, signal, time
DUE_S = 3600
def arm(clock, *, absolute=True, flags=0, every_s=0.0):
    fd = os.timerfd_create(clock, flags=os.TFD_NONBLOCK)
    start, flags = (time.clock_gettime(clock), flags | os.TFD_TIMER_ABSTIME) if absolute else (0, 0)
    os.timerfd_settime(fd, flags=flags, initial=start + DUE_S, interval=every_s)
    return fd
def tell(fd):
    try:
        return int.from_bytes(os.read(fd, 8), "little")
    except BlockingIOError:
        return "waits"
    except OSError as error:
        return os.strerror(error.errno)
timers = {
    "realtime": arm(time.CLOCK_REALTIME),
    "realtime-hourly": arm(time.CLOCK_REALTIME, every_s=DUE_S),
    "realtime-cancel-on-set": arm(time.CLOCK_REALTIME, flags=os.TFD_TIMER_CANCEL_ON_SET),
    "realtime-relative": arm(time.CLOCK_REALTIME, absolute=False),
    "monotonic": arm(time.CLOCK_MONOTONIC),
    "boottime": arm(time.CLOCK_BOOTTIME),
}
alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
signal.setitimer(signal.ITIMER_REAL, DUE_S)
os.mkfifo("/run/answer")
with open("/run/answer", "w") as answer:
    told = {name: tell(fd) for name, fd in timers.items()}
    json.dump(told | {"alarm": len(alarms) or "waits"}, answer)
"""
HOURS_AHEAD = MONTH_S // 3600

# A process that watches the folder for files that are renamed into it (IN_MOVED_TO, inotify(7)).
WATCH = """
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, b"/run/vmfork", 0x80) > 0
os.mkfifo("/run/seen")
while b"generation" not in os.read(fd, 65536):
    pass
with open("/run/seen", "w") as seen:
    seen.write(open("/run/vmfork/generation").read())
"""


@pytest.fixture(scope="module")
def timed(template_name):
    """A template that was frozen with timers armed, and with a process that watches for the next generation."""
    warm_up = [
        line
        for name, script in (("timers", TIMERS), ("watch", WATCH))
        for line in (
            f"cat > /root/{name}.py <<'END'\n{script}END",
            f"setsid --fork python3 /root/{name}.py > /root/{name}.log 2>&1",
        )
    ]
    ready = "test -p /run/answer && test -p /run/seen"
    template = asyncio.run(Template.build("timed", VMConfig(), warm_up=warm_up, ready=ready))
    yield template
    asyncio.run(template.remove())


@pytest.mark.parametrize("ahead_s", [0, MONTH_S])
async def test_only_timers_of_the_wall_clock_fire_after_a_long_freeze(timed, ahead_s) -> None:
    base = await timed._source.fork_base()
    adopted = await base.adopt(timeout_s=30, clock=lambda: time.time_ns() + ahead_s * 10**9)
    async with VM(*adopted) as vm:
        told = json.loads((await vm.exec(["cat", "/run/answer"], timeout_s=30, check=True)).stdout)
    assert told == {
        "realtime": 1 if ahead_s else "waits",
        # Once, with a count of all it missed.
        "realtime-hourly": HOURS_AHEAD if ahead_s else "waits",
        # In every fork: the clock was set.
        "realtime-cancel-on-set": "Operation canceled",
        "realtime-relative": "waits",
        "monotonic": "waits",
        "boottime": "waits",
        "alarm": "waits",
    }


async def test_a_process_that_watches_the_folder_learns_of_its_fork(timed) -> None:
    """The file is replaced by rename: one event, and whole whenever it is read."""
    vms = await timed.fork_many(2)
    try:
        for vm in vms:
            assert (await vm.exec(["cat", "/run/seen"], timeout_s=30, check=True)).stdout == f"{vm.generation}\n"
    finally:
        for vm in vms:
            await vm.aclose()
