"""What a recipe reads of the host: its folder, nothing beside it, and a digest that tells what counts."""

from __future__ import annotations

import os

import pytest

from vmfork.errors import ConfigError
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_steps
from vmfork.recipe.words import read_steps


@pytest.fixture
def folder(tmp_path):
    """A recipe's folder with an application, and a secret beside it."""
    (tmp_path / "secret").write_text("s")
    app = tmp_path / "recipe" / "app"
    (app / "deep").mkdir(parents=True)
    (app / "main.py").write_text("print(1)")
    (app / "deep" / "data.bin").write_bytes(b"\0" * 100)
    (app / "deep" / "out.log").write_text("noise")
    (app / "link").symlink_to("main.py")
    (tmp_path / "recipe" / "requirements.txt").write_text("flask\n-r more.txt\n--constraint=limits.txt # why\n")
    (tmp_path / "recipe" / "more.txt").write_text("numpy\n")
    (tmp_path / "recipe" / "limits.txt").write_text("numpy<3\n")
    return tmp_path / "recipe"


async def names_in(context: Context, name: str) -> list[str]:
    packing, _ = context.pack(name, field="copy")
    found = []
    while (batch := await packing.next_batch()).has_any:
        found += [made.path for _, made in batch.made]
    packing.close()
    return sorted(found)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../secret", "leads out of the recipe's folder"),
        ("app/../../secret", "leads out of the recipe's folder"),
        ("/etc/passwd", "leads out of the recipe's folder"),
        ("out", "is a link that leads out"),
        ("out/secret", "is a link that leads out"),
        ("none", "there is no 'none' in"),
    ],
)
def test_what_is_not_in_the_folder_is_refused(folder, name, told) -> None:
    (folder / "out").symlink_to("..")
    with pytest.raises(ConfigError, match=told):
        Context.of(folder).find(name, field="copy")


def test_what_is_neither_a_file_nor_a_folder_is_refused_before_a_machine_is_booted(folder) -> None:
    (folder / "round").symlink_to("round")
    os.mkfifo(folder / "pipe")
    for name, told in (("round", "Too many levels of symbolic links"), ("pipe", "neither a file nor a folder")):
        with pytest.raises(ConfigError, match=told) as caught:
            digest_steps(read_steps([{"copy": [name, "/srv/it"]}]), Context.of(folder))
        assert (caught.value.field, caught.value.value) == ("copy", name)


async def test_what_the_ignore_file_names_is_neither_copied_nor_counted(folder) -> None:
    plain = Context.of(folder).digest("app", field="copy")
    (folder / ".vmforkignore").write_text("# noise\n*.log\n/app/link\nnothing/\n")
    context = Context.of(folder)
    assert await names_in(context, "app") == [".", "deep", "deep/data.bin", "main.py"]
    before = context.digest("app", field="copy")
    assert before != plain
    (folder / "app" / "deep" / "out.log").write_text("other noise")
    assert context.digest("app", field="copy") == before


async def test_a_later_line_of_the_ignore_file_takes_back_an_earlier_one(folder) -> None:
    (folder / ".vmforkignore").write_text("deep/*\n!app/deep/data.bin\n**/deep/out.log\n")
    names = await names_in(Context.of(folder), "app")
    assert "deep/data.bin" in names
    assert "deep/out.log" not in names
    (folder / ".vmforkignore").write_text("app/[\n")
    with pytest.raises(ConfigError, match=r"has a '\[' without its"):
        Context.of(folder)


def test_the_digest_tells_names_contents_and_modes_and_no_times(folder) -> None:
    context, path = Context.of(folder), folder / "app" / "main.py"
    before = context.digest("app", field="copy")
    os.utime(path, (1, 1))
    assert context.digest("app", field="copy") == before
    changes = [
        lambda: path.write_text("print(2)"),
        lambda: path.chmod(0o755),
        lambda: path.rename(path.with_name("other.py")),
        (folder / "app" / "empty").mkdir,
    ]
    for change in changes:
        change()
        now = context.digest("app", field="copy")
        assert now != before
        before = now


def test_a_step_is_another_when_its_files_are_and_so_are_all_behind_it(folder) -> None:
    context = Context.of(folder)
    steps = read_steps([{"run": "one"}, {"copy": ["app", "/app"]}, {"pip": "requirements.txt"}, {"run": "last"}])

    def same(before, now) -> int:
        return sum(a == b for a, b in zip(before, now, strict=True))

    first = digest_steps(steps, context)
    assert len(set(first)) == 4
    assert same(first, digest_steps(steps, context)) == 4
    for name, kept in (("more.txt", 2), ("limits.txt", 2), ("requirements.txt", 2), ("app/main.py", 1)):
        (folder / name).write_text("changed\n-r more.txt\n-climits.txt\n" if name == "requirements.txt" else "x\n")
        now = digest_steps(steps, context)
        assert same(first, now) == kept, name
        first = now


def test_a_hook_is_another_by_its_content_and_is_a_file(folder) -> None:
    context = Context.of(folder)
    (folder / "reseed").write_text("#!/bin/sh\n")
    steps = read_steps([{"hooks": {"after_fork": "reseed"}}])
    first = digest_steps(steps, context)
    (folder / "reseed").chmod(0o600)
    assert digest_steps(steps, context) == first  # all are made executable
    assert digest_steps(read_steps([{"hooks": {"before_freeze": "reseed"}}]), context) != first
    (folder / "reseed").write_text("#!/bin/sh\ntrue\n")
    assert digest_steps(steps, context) != first
    for name, told in (("app", "is no file"), ("../secret", "leads out"), ("none", "there is no 'none'")):
        with pytest.raises(ConfigError, match=told):
            digest_steps(read_steps([{"hooks": {"after_fork": name}}]), context)


def test_what_leaves_nothing_behind_does_not_make_a_step_another(folder) -> None:
    context = Context.of(folder)
    one = read_steps([{"run": "x", "timeout": 5, "secret_files": {"/run/t": "a"}}])
    other = read_steps([{"run": "x", "secret_files": {"/run/t": "b"}}])
    assert digest_steps(one, context) == digest_steps(other, context)
    assert digest_steps(one, context) != digest_steps(read_steps([{"run": "x"}]), context)


def test_files_of_requirements_that_name_each_other_are_refused(folder) -> None:
    (folder / "more.txt").write_text("-r requirements.txt\n")
    with pytest.raises(ConfigError, match="they name each other"):
        digest_steps(read_steps([{"pip": "requirements.txt"}]), Context.of(folder))
    with pytest.raises(ConfigError, match=r"there is no 'none\.txt'"):
        digest_steps(read_steps([{"pip": "none.txt"}]), Context.of(folder))
    (folder / "requirements.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot read"):
        digest_steps(read_steps([{"pip": "requirements.txt"}]), Context.of(folder))
