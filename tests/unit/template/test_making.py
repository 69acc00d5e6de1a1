"""What a build holds its steps to, in a machine that takes whatever it is sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.template.test_layers import Planned
from vmfork.config import Instance, Places
from vmfork.errors import ConfigError
from vmfork.machine.base import Adopted
from vmfork.template.making import BuildOptions, Making
from vmfork.template.recipe import Recipe


class Agent:
    """Has whatever it is sent."""

    async def put(self, packing, _path, **_options) -> None:
        packing.close()


async def test_a_file_that_changes_between_the_begin_of_a_build_and_its_step_fails_that_by_name(tmp_path) -> None:
    """A layer of the step would be called by the former content, and be taken for it by later builds."""
    (tmp_path / "note").write_text("one")
    recipe = Recipe(steps=[{"copy": ["note", "/srv/one"]}, {"copy": ["note", "/srv/two"]}], folder=tmp_path).pinned()

    def listen(progress) -> None:
        if "/srv/two" in progress.step:
            (tmp_path / "note").write_text("two")

    instance = Instance(Places(home=tmp_path / "home", runtime=tmp_path / "run"), listen)
    build = Making(Planned(), recipe, instance, BuildOptions(), layers_mib=None, layers_disk_mib=None)
    running = SimpleNamespace(agent=Agent())
    with pytest.raises(ConfigError) as caught:
        await build._do_steps(Adopted(running, None, None), None)
    assert str(caught.value).startswith("step 2 of 2, copy note /srv/two: copy: it changed since the build began")
    assert [done.step for done in build.done] == ["copy note /srv/one"]
