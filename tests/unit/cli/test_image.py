"""`vmfork image`: an image that templates were made of, and what `--package` and `--bare` add up to."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.unit.image.samples import commit_image
from vmfork.cli import image as verbs
from vmfork.errors import ConfigError, ImageInUse
from vmfork.image import ImageStore
from vmfork.store import TemplateStore


@pytest.fixture
def removed(monkeypatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(ImageStore, "check_there", lambda _store, _name: "digest")
    monkeypatch.setattr(ImageStore, "remove", lambda _store, name: names.append(name))
    monkeypatch.setattr(TemplateStore, "list_made_of", lambda _store, name: ["py", "web"] if name == "mine" else [])
    return names


def test_an_image_that_templates_were_made_of_stays_and_they_are_named(removed):
    done = CliRunner().invoke(verbs.command, ["rm", "mine"])
    assert isinstance(done.exception, ImageInUse)
    assert done.exception.templates == ("py", "web")
    assert "py, web" in str(done.exception)
    assert "--force" in done.exception.hint
    assert removed == []


def test_with_force_it_goes(removed):
    done = CliRunner().invoke(verbs.command, ["rm", "mine", "--force", "--json"])
    assert json.loads(done.stdout) == {"removed": True, "image": "mine", "templates": ["py", "web"]}
    assert removed == ["mine"]


def test_an_image_of_no_template_goes(removed):
    assert CliRunner().invoke(verbs.command, ["rm", "other"]).exit_code == 0
    assert removed == ["other"]


@pytest.fixture
def built(monkeypatch) -> list[object]:
    configs: list[object] = []

    class Built(Exception):
        pass

    async def build(_name, config, *_args, **_options) -> None:
        configs.append(config)
        raise Built

    monkeypatch.setattr(verbs, "_build", build)
    return configs


def test_packages_of_file_variable_and_arguments_mean_the_same(built, monkeypatch):
    monkeypatch.setenv("VMFORK_IMAGE_PACKAGES", "git jq")
    CliRunner().invoke(verbs.command, ["build", "mine", "--package", "sqlite3", "-p", "git"])
    assert (built[0].packages, built[0].bare) == (("git", "jq", "sqlite3"), False)
    CliRunner().invoke(verbs.command, ["build", "mine", "--bare"])
    assert (built[1].packages, built[1].bare) == (("git", "jq"), True)
    monkeypatch.setenv("VMFORK_IMAGE_BARE", "yes")
    CliRunner().invoke(verbs.command, ["build", "mine"])
    assert built[2].bare is True


def test_what_an_image_is_made_of_is_found_by_its_name(built, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmfork.toml").write_text('[image.app]\nfrom = "oci:in"\n[image.tools]\npackages = ["git"]\n')
    for argv in (["build", "app"], ["build", "tools", "--package", "jq"], ["build", "other"]):
        CliRunner().invoke(verbs.command, argv)
    assert [config.source for config in built] == [f"oci:{tmp_path}/in", "", ""]
    assert [config.packages for config in built] == [(), ("git", "jq"), ()]
    wrong = CliRunner().invoke(verbs.command, ["build", "app", "--package", "git"])
    assert isinstance(wrong.exception, ConfigError)


def test_a_dockerfile_is_built_as_it_is_said_and_takes_no_packages(monkeypatch, tmp_path):
    asked: list[tuple[object, ...]] = []

    class Built(Exception):
        pass

    async def build(_kind, file, name, *, context, arguments, rebuild, max_bytes, root, progress) -> None:
        asked.append((str(file), name, str(context), dict(arguments), rebuild, max_bytes >> 30, root))
        raise Built

    monkeypatch.setattr(verbs.ImportedImage, "build_dockerfile", classmethod(build))
    monkeypatch.setenv("FROM_HERE", "2")
    given = ["--context", str(tmp_path), "--build-arg", "A=1", "--build-arg", "FROM_HERE", "--rebuild"]
    given += ["--max-size", "16G", "--root", "disk"]
    for argv in (["build", "app", "-f", "Dockerfile"], ["build", "app", "-f", "Dockerfile", *given]):
        assert isinstance(CliRunner().invoke(verbs.command, argv).exception, Built)
    plain, all_of_it = asked
    assert plain[:2] == all_of_it[:2] == ("Dockerfile", "app")
    assert plain[3:] == ({}, False, 8, "auto")
    assert all_of_it[2:] == (str(tmp_path), {"A": "1", "FROM_HERE": "2"}, True, 16, "disk")
    for argv, field in (
        (["-f", "Dockerfile", "--package", "git"], "package"),
        (["-f", "Dockerfile", "--bare"], "bare"),
        (["-f", "Dockerfile", "--suite", "trixie"], "suite"),
        (["-f", "Dockerfile", "--max-size", "much"], "max_size"),
        (["--max-size", "1G"], "file"),
        (["--context", "."], "file"),
        (["--build-arg", "A=1"], "file"),
    ):
        refused = CliRunner().invoke(verbs.command, ["build", "app", *argv]).exception
        assert isinstance(refused, ConfigError)
        assert refused.field == field
    for argument in "=3", "NOT_SET_HERE":
        wrong = CliRunner().invoke(verbs.command, ["build", "app", "-f", "Dockerfile", "--build-arg", argument])
        assert isinstance(wrong.exception, ConfigError)
        assert wrong.exception.field == "build_arg"
        assert "--build-arg " in wrong.exception.hint
        assert "-e " not in wrong.exception.hint
    assert len(asked) == 2


def test_an_image_goes_by_a_file_to_another_instance(tmp_path, monkeypatch):
    def run(*argv: str, home: str) -> tuple[int, str]:
        monkeypatch.setenv("VMFORK_HOME", str(tmp_path / home))
        monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "runtime"))
        done = CliRunner().invoke(verbs.command, argv)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout

    image = commit_image(ImageStore(tmp_path / "here" / "images"))
    file = str(tmp_path / "py.tar")
    status, said = run("save", "py", file, "--json", home="here")
    assert (status, json.loads(said)["image"]) == (0, "py")
    _, said = run("load", file, "copy", "--json", home="there")
    assert (json.loads(said)["name"], json.loads(said)["digest"]) == ("copy", image.digest)
    assert run("load", file, home="there")[1].startswith("image py: ")
    with pytest.raises(ConfigError, match="ref"):
        run("push", "py", "none", home="there")
    with pytest.raises(ConfigError, match="ref"):
        run("pull", "none", home="there")


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["python:3.13", "app"], "source"),
        (["./root", "app"], "source"),
        (["oci:none", "app"], "source"),
        (["dir:root", "default"], "image"),
        (["dir:root", "a b"], "image"),
        (["dir:root", "app", "--max-size", "0"], "max_"),
        (["dir:root", "app", "--max-size", "much"], "max_"),
        (["dir:root", "app", "--root", "floppy"], "image.root"),
    ],
)
def test_an_import_that_cannot_be_is_refused_before_anything_is_built(argv, field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    (tmp_path / "root").mkdir()
    done = CliRunner().invoke(verbs.command, ["import", *argv])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.field.startswith(field)
    assert not (tmp_path / "home").exists()
