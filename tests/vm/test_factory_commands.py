"""`vmfork factory` with real machines: what init says is so, and what status says."""

from __future__ import annotations

import pytest

from tests.vm.cli_runner import left_of, vmfork

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def nothing_is_left(instance):
    yield
    assert left_of(instance.runtime) == []


@pytest.fixture
def settings(instance):
    """A factory whose template is its own, removed in the end."""
    yield {"VMFORK_FACTORY_TEMPLATE": "true", "VMFORK_FACTORY_TEMPLATE_NAME": "own"}
    vmfork("template", "rm", "own")


@pytest.mark.parametrize("also", ["VMFORK_FACTORY_BUILD=background", "VMFORK_FACTORY_REMOTE=true"])
def test_init_says_ready_when_the_template_is(settings, also) -> None:
    """It said so, and exited with 0, when it had begun a build and cancelled it."""
    name, _, value = also.partition("=")
    done = vmfork("factory", "init", env={**settings, name: value}).check()
    assert "template own is ready" in done.out
    assert vmfork("factory", "status", env=settings).check().out.startswith("on: template own")


def test_init_looks_at_every_template_before_it_builds_one(settings) -> None:
    done = vmfork("factory", "init", env={**settings, "VMFORK_FACTORY_TEMPLATES": "absent"})
    assert done.status == 1
    assert "no template is named 'absent'" in done.err
    assert "booting" not in done.err


def test_init_of_a_client_says_where_the_template_is_built() -> None:
    done = vmfork("factory", "init", env={"VMFORK_FACTORY_REMOTE": "true"})
    assert done.status == 2
    assert "no template to build" in done.err
    assert "run this where it serves" in done.err
