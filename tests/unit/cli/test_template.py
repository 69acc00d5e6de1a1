"""`vmfork template build`: what is asked wrongly is refused by name, before anything is built."""

from __future__ import annotations

import json

import pytest

from vmfork.cli.main import main
from vmfork.config import ImageConfig, VMConfig
from vmfork.errors import ConfigError

RECIPE = '[template.web]\nsteps = [{run = "true"}]\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmfork.toml").write_text(RECIPE)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["web", "--copy", "app"], "'app' is not HOST:GUEST"),
        (["web", "--copy", ":/srv/app"], "':/srv/app' is not HOST:GUEST"),
        (["web", "--copy", "app:"], "'app:' is not HOST:GUEST"),
        (["-f", "vmfork.toml", "wbe"], "did you mean web"),
        (["-f", "none.toml"], "cannot read none.toml"),
    ],
)
def test_what_is_asked_wrongly_is_refused_by_name(home, capsys, argv, told) -> None:
    assert main(["template", "build", *argv, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "config"
    assert told in f"{error['message']} {error['hint']}"
    assert not home.exists()


@pytest.mark.parametrize(
    ("given", "cache", "keep_failed"),
    [((), True, False), (("--no-cache",), False, False), (("--keep-failed",), True, True)],
)
def test_what_is_asked_of_the_cache_and_of_a_failed_machine_reaches_the_build(
    home, capsys, monkeypatch, given, cache, keep_failed
) -> None:
    """tests/vm/test_layers.py shows what becomes of it."""
    asked = []

    async def prepare(_settings, _progress) -> None:
        """The image is no matter here."""

    async def build(name, _config, **options) -> None:
        asked.append((name, options["cache"], options["keep_failed"]))
        raise ConfigError("name", name, "enough was told")

    monkeypatch.setattr("vmfork.cli.template.prepare_image", prepare)
    monkeypatch.setattr("vmfork.cli.template.Template.build", build)
    assert main(["template", "build", "-f", "vmfork.toml", *given]) == 2
    assert "enough was told" in capsys.readouterr().err
    assert asked == [("web", cache, keep_failed)]


@pytest.mark.parametrize("is_configuration", [True, False])
def test_what_a_recipe_file_says_of_machines_comes_before_the_configuration_and_behind_the_environment(
    home, tmp_path, capsys, monkeypatch, is_configuration
) -> None:
    """As for Python, which asks no environment: tests/unit/template/test_recipe.py."""
    asked = []

    async def prepare(settings, _progress) -> None:
        asked.append(settings.find_made_of(settings.vm.image))

    async def build(name, config, **_options) -> None:
        asked.append(config)
        raise ConfigError("name", name, "enough was told")

    monkeypatch.setattr("vmfork.cli.template.prepare_image", prepare)
    monkeypatch.setattr("vmfork.cli.template.Template.build", build)
    monkeypatch.setenv("VMFORK_VM_NIC", "true")
    path = tmp_path / ("vmfork.toml" if is_configuration else "other.toml")
    (tmp_path / "vmfork.toml").write_text('[vm]\nmax_cpus = 8\nimage = "default"\n[image.tools]\npackages = ["git"]\n')
    path.write_text(
        '[vm]\ncpus = 2\nmemory_mib = 320\nimage = "tools"\nnic = false\n[image.tools]\npackages = ["make"]\n'
        '[template.web]\nmemory = "512M"\ndisk = "1G"\n'
    )
    assert main(["template", "build", "-f", str(path), "--disk", "2G"]) == 2
    assert "enough was told" in capsys.readouterr().err
    more = {} if is_configuration else {"max_cpus": 8}
    assert asked == [
        ImageConfig(packages=("make",)),
        VMConfig(cpus=2, memory_mib=512, image="tools", nic=True, disk_mib=2048, **more),
    ]
