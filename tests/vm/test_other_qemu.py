"""Two releases of QEMU on one host: each serves templates of its own, and refuses the other's by name."""

from __future__ import annotations

import asyncio

import pytest
from hosts.emulator import write_emulator
from hosts.releases import open_debian12, open_debian13

from tests.rules.capabilities import need
from tests.vm.cli_runner import vmfork
from vmfork.aio import Template
from vmfork.config import VMConfig
from vmfork.errors import TemplateStale, TemplateUnfit
from vmfork.hypervisor.qemu import find_qemu

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def other_qemu(tmp_path_factory) -> str:
    """The QEMU of Debian 13; where that is this host's, the one of Debian 12."""
    need("namespaces")
    here = asyncio.run(find_qemu())
    with open_debian12() if here.release >= (10,) else open_debian13() as root:
        program = write_emulator(root, tmp_path_factory.mktemp("other") / "qemu")
        assert asyncio.run(find_qemu(str(program))).release[0] != here.release[0]
        yield str(program)


@pytest.fixture(scope="module")
def of_other(other_qemu) -> Template:
    """For those who leave it as it is."""
    template = asyncio.run(Template.build("of-other", VMConfig(qemu=other_qemu)))
    yield template
    asyncio.run(template.remove())


async def test_the_other_serves_its_own_template(of_other) -> None:
    async with await of_other.fork() as vm:
        assert (await vm.exec(["uname"])).stdout == "Linux\n"


async def test_a_template_of_the_other_is_refused_by_name(of_other) -> None:
    with pytest.raises(TemplateStale) as caught:
        await Template.open("of-other")
    assert caught.value.field == "qemu.version"
    here = (await find_qemu()).version
    assert (caught.value.have, caught.value.want) == (of_other.manifest.traits["qemu.version"], here)
    outcome = vmfork("run", "-t", "of-other", "--", "true")
    assert (outcome.status, "qemu.version" in outcome.err, "--replace" in outcome.err) == (125, True, True)


async def test_one_of_the_other_that_is_loaded_is_refused_by_what_would_fit(of_other, other_qemu, tmp_path) -> None:
    opened = await Template.open("of-other", config=VMConfig(qemu=other_qemu))
    await opened.save(tmp_path / "other.tar")
    with pytest.raises(TemplateUnfit) as caught:
        await Template.load(tmp_path / "other.tar", "here")
    assert (caught.value.field, caught.value.have) == ("qemu.version", of_other.manifest.traits["qemu.version"])
    assert "with that QEMU" in caught.value.hint
    back = await Template.load(tmp_path / "other.tar", "here", config=VMConfig(qemu=other_qemu))
    async with await back.fork() as vm:
        assert (await vm.exec(["uname"])).stdout == "Linux\n"
    await back.remove()


async def test_the_other_refuses_a_template_of_this_one(template_name, other_qemu, tmp_path) -> None:
    with pytest.raises(TemplateStale, match=r"qemu\.version"):
        await Template.open(template_name, config=VMConfig(qemu=other_qemu))
    template = await Template.open(template_name)
    await template.save(tmp_path / "this.tar")
    with pytest.raises(TemplateUnfit) as caught:
        await Template.load(tmp_path / "this.tar", "there", config=VMConfig(qemu=other_qemu))
    assert (caught.value.field, caught.value.have) == ("qemu.version", template.manifest.traits["qemu.version"])
    outcome = vmfork("run", "-t", template_name, "--", "true", env={"VMFORK_VM_QEMU": other_qemu})
    assert (outcome.status, "qemu.version" in outcome.err) == (125, True)
