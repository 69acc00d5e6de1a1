"""Agents that fail, lie, die or are old: each a named error within its deadline, and nothing left."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.vm.agents import add_image, compile_agent_of, compile_faulty_agent
from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import AdoptError, ExecError, GuestError, LaunchError, ProtocolError, TemplateStale, VMForkError
from vmfork.image import ImageStore
from vmfork.machine import launch
from vmfork.wire.frame import FIRST_WITH_ROOM, PROTOCOL

pytestmark = pytest.mark.vm

LIMIT_S = 4.0


@pytest.fixture(scope="module")
def faulty_template(template_name, instance, tmp_path_factory):
    add_image("faulty", compile_faulty_agent(tmp_path_factory.mktemp("agent")), places=instance)
    config = VMConfig(image="faulty", fork_timeout_s=LIMIT_S)
    template = asyncio.run(Template.build("faulty", config))
    yield template
    asyncio.run(template.remove())
    ImageStore(instance.images).remove("faulty")


async def fork_error(template: Template, monkeypatch, fault: str) -> VMForkError:
    """What a fork raises whose agent has that fault: its id names it, and is adopted before the rest."""
    monkeypatch.setattr(launch, "new_vm_id", lambda: fault)
    begin = time.monotonic()
    with pytest.raises(VMForkError) as caught:
        await template.fork()
    assert time.monotonic() - begin < LIMIT_S + 60
    assert await VM.list() == []
    return caught.value


async def test_without_a_fault_it_forks(faulty_template) -> None:
    async with await faulty_template.fork() as vm:
        assert (await vm.exec(["hostname"])).stdout.strip() == vm.hostname


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("lie-hostname", AdoptError, "hostname: the guest shows"),
        ("lie-clock", AdoptError, "clock: "),
        ("refuse-clock", AdoptError, "clock: "),
        ("hang", AdoptError, f"agent: it did not answer within {LIMIT_S:g} s"),
        ("die", LaunchError, "the guest panicked: Attempted to kill init!"),
    ],
)
async def test_a_fault_destroys_the_fork(faulty_template, monkeypatch, fault, kind, said) -> None:
    error = await fork_error(faulty_template, monkeypatch, fault)
    assert isinstance(error, kind)
    assert said in str(error)


@pytest.fixture(scope="module")
def entropy_templates(template_name):
    """Templates whose entropy device is gone, and whose entropy device is none: `/dev/null` takes no entropy."""
    harms = {"no-urandom": "rm /dev/urandom", "null-urandom": "rm /dev/urandom; mknod /dev/urandom c 1 3"}

    async def build() -> list[Template]:
        return await asyncio.gather(*(Template.build(name, VMConfig(), warm_up=[harms[name]]) for name in harms))

    templates = {template.name: template for template in asyncio.run(build())}
    yield templates
    for template in templates.values():
        asyncio.run(template.remove())


@pytest.mark.parametrize(("name", "reason"), [("no-urandom", "not-found"), ("null-urandom", "io")])
async def test_a_guest_without_an_entropy_device_is_refused(entropy_templates, name, reason) -> None:
    with pytest.raises(AdoptError) as caught:
        await entropy_templates[name].fork()
    assert (caught.value.item, caught.value.reason) == ("entropy", reason)
    assert await VM.list() == []


@pytest.fixture
def old_image(template_name, instance, tmp_path):
    """Makes an image whose agent speaks an older protocol; its name."""
    made = []

    def make(protocol: int) -> str:
        name = f"protocol-{protocol}"
        add_image(name, compile_agent_of(tmp_path, protocol), places=instance)
        made.append(name)
        return name

    yield make
    for name in made:
        ImageStore(instance.images).remove(name)


@pytest.mark.parametrize("protocol", [1, 2, 3])
async def test_an_agent_of_a_previous_protocol_is_served(old_image, protocol) -> None:
    template = await Template.build("old", VMConfig(image=old_image(protocol)))
    try:
        assert template.manifest.agent_protocol == protocol
        async with await template.fork() as vm:
            assert (await vm.exec(["hostname"], timeout_s=30)).stdout.strip() == vm.hostname
            assert await vm.measure_clock_skew() <= 10 * SKEW_LIMIT_S
            await vm.write_file("/tmp/d/f", "x", parents=True)
            assert (await vm.stat("/tmp/d/f")).mode == 0o644
            await vm.remove("/tmp/d", recursive=True)
            if protocol < FIRST_WITH_ROOM:
                with pytest.raises(ExecError, match="bytes"):
                    await vm.exec(["true", *["x" * 100_000] * 3])
            with pytest.raises(GuestError, match="has no terminals"):
                await vm.start(["sh"], pty=(24, 80))
    finally:
        await template.remove()


async def test_an_agent_of_a_protocol_before_is_refused_by_name(old_image, monkeypatch) -> None:
    config = VMConfig(image=old_image(0))
    with pytest.raises(ProtocolError, match=rf"\b0\b.*\b{PROTOCOL}\b"):
        await Template.build("old", config)
    # As the vmfork of that day built it.
    monkeypatch.setattr("vmfork.wire.message.SUPPORTED_PROTOCOLS", frozenset({0, PROTOCOL}))
    monkeypatch.setattr("vmfork.travel.fit.SUPPORTED_PROTOCOLS", frozenset({0, PROTOCOL}))
    template = await Template.build("old", config)
    monkeypatch.undo()
    try:
        with pytest.raises(TemplateStale) as caught:
            await Template.open("old")
        assert (caught.value.field, caught.value.have, caught.value.want) == ("agent.protocol", 0, PROTOCOL)
        assert "replace=True" in caught.value.hint
    finally:
        await template.remove()
