"""What pip would build on this host, or what no recipe reads, is refused by its name before pip is run."""

from __future__ import annotations

import pytest

from vmfork.errors import ConfigError
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_steps, wants_package
from vmfork.recipe.requirements import check_wanted, is_file, read_listed
from vmfork.recipe.step import Pip
from vmfork.recipe.words import read_steps

BUILT = [
    ("./pkg", "is a folder or an archive"),
    ("./pkg[extra]", "is a folder or an archive"),
    ("pkg/", "is a folder or an archive"),
    ("sub/pkg; python_version > '3'", "is a folder or an archive"),
    ("/srv/pkg", "is a folder or an archive"),
    (".", "is a folder or an archive"),
    ("~/pkg", "is a folder or an archive"),
    ("pkg-1.0.tar.gz", "is a folder or an archive"),
    ("pkg-1.0.zip[extra]", "is a folder or an archive"),
    ("pkg==1.0.zip", "is a folder or an archive"),
    ("pkg @ file:///srv/pkg", "is no address of a wheel"),
    ("pkg@file:pkg", "is no address of a wheel"),
    ("file:///srv/pkg", "is no address of a wheel"),
    ("pkg @ git+https://example.org/pkg", "is no address of a wheel"),
    ("hg+https://example.org/pkg.whl", "is no address of a wheel"),
    ("https://example.org/pkg-1.0.tar.gz", "is no address of a wheel"),
    ("pkg @ https://example.org/pkg.zip?x=.whl", "is no address of a wheel"),
    ("pkg @ https://example.org/pkg.zip#x.whl", "is no address of a wheel"),
    ("https://example.org/pkg.whl;python_version>'3'", "is no address of a wheel"),  # pip: a part of the name
    ("pkg @ file:///srv/pkg-1.0-py3-none-any.whl", "a wheel of this host that the recipe does not read"),
]
TAKEN = [
    "flask", "flask==3.1.*", "flask == 3.1.0", "flask>=1,<2,!=1.5", "flask (>=1.0)",
    "flask~=3.1 ; python_version > '3'",
    "flask[async, dotenv]>=3", "zope.interface", "ruamel.yaml===0.18+local",
    'typing_extensions; python_version < "3.13"',
    "pkg @ https://example.org/pkg-1.0-py3-none-any.whl", "https://example.org/pkg-1.0-py3-none-any.whl#sha256=0f",
    "pkg[extra] @ https://user@example.org/pkg-1.0-py3-none-any.whl ; python_version > '3'",
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "told"), BUILT)
def test_what_pip_would_build_is_refused_in_a_step_and_in_a_file(wanted: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        check_wanted(wanted)
    assert refused.value.hint
    with pytest.raises(ConfigError, match=rf"{told}.*\(in reqs\.txt\)"):
        read_listed(f"flask\n  {wanted}  # why\n", "reqs.txt")


@pytest.mark.parametrize("wanted", TAKEN)
def test_names_and_addresses_of_wheels_are_taken(wanted: str) -> None:
    assert not is_file(wanted)
    check_wanted(wanted)
    assert read_listed(f"{wanted} --hash=sha256:0f\n", "reqs.txt").wants == (";" not in wanted)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("-e ./pkg", "would have pip build"),
        ("-e./pkg", "would have pip build"),
        ("--editable=./pkg", "would have pip build"),
        ("--edit ./pkg", "would have pip build"),  # optparse takes what is cut short
        ("--pre -e git+https://example.org/pkg", "would have pip build"),
        ("-\\\ne ./pkg", "would have pip build"),
        ("\ufeff-e ./pkg", "would have pip build"),
        ("${PLACE}", "is a folder or an archive"),
        ("--no-binary :all:", "no wheel, and build it"),
        ("--only-binary=:none:", "no wheel, and build it"),
        ("--only-binary flask,:none:", "no wheel, and build it"),
        ("-f ./wheels", "looks in a folder"),
        ("--find-links=file:///srv/wheels", "looks in a folder"),
        ("-i /srv/simple", "looks in a folder"),
        ("-r https://example.org/reqs.txt", "not in the recipe's folder"),
        ("-c file:///srv/limits.txt", "not in the recipe's folder"),
        ("-r uv.lock", "is no file of requirements"),
        ("./pkg-1.0-py3-none-any.whl", "a wheel of this host"),
        ("pkg-1.0-py3-none-any.whl", "a wheel of this host"),
        ("--build-it", "is not understood: no such option"),
        ("-r 'more.txt", "is not understood: No closing quotation"),
        ("-r", "is not understood"),
        ("--pre flask", "has 'flask' behind its options"),
        ("flask = 3", "is no requirement"),
        ("${NOT_THERE}", "is no requirement"),
    ],
)
def test_options_that_lead_there_are_refused_in_a_file(line: str, told: str, monkeypatch) -> None:
    monkeypatch.setenv("PLACE", "./pkg")
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match=told) as refused:
        read_listed(f"{line}\nflask\n", "reqs.txt")
    assert refused.value.hint


def test_the_files_that_a_file_names_are_found_as_pip_finds_them() -> None:
    text = (
        "# -r not.txt\n--pre -r 'a b.txt'\n-c limits.txt\n--requirement=more.txt # -e .\n#\\\n-rlast.txt\n"
        "-f https://example.org/wheels --extra-index-url https://example.org/simple\n--only-binary :all:\n"
    )
    listed = read_listed(text, "reqs.txt")
    assert listed.required == ("a b.txt", "more.txt", "last.txt")
    assert listed.limits == ("limits.txt",)
    assert not listed.wants


def test_credentials_are_not_told() -> None:
    with pytest.raises(ConfigError) as refused:
        check_wanted("git+https://me:s3cret@example.org/pkg")
    assert "s3cret" not in str(refused.value) + str(refused.value.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("uv.lock", "uv export"),
        ("app/poetry.lock", "poetry export"),
        ("Pipfile.lock", "pipenv requirements"),
        ("pdm.lock", "pdm export"),
        ("pylock.toml", "uv export"),
        ("pylock.dev.toml", "uv export"),
        ("pyproject.toml", "uv pip compile"),
    ],
)
def test_files_of_other_tools_are_refused_with_what_makes_one_of_requirements(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match="is no file of requirements") as refused:
        check_wanted(name)
    assert told in refused.value.hint


def test_a_recipe_is_refused_before_a_machine_is_booted(tmp_path) -> None:
    """Also by what a file says that a file of its own names; a wheel of the folder is a part of the digest."""
    context = Context.of(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "reqs.txt").write_text("flask\n-r sub/more.txt\n")
    (tmp_path / "sub" / "more.txt").write_text("-c limits.txt\n")
    (tmp_path / "sub" / "limits.txt").write_text("flask @ file:///srv/flask\n")
    with pytest.raises(ConfigError, match=r"pip would build it on this host \(in sub/limits\.txt\)"):
        digest_steps(read_steps([{"pip": "reqs.txt"}]), context)
    with pytest.raises(ConfigError, match="is a folder or an archive"):
        digest_steps(read_steps([{"pip": ["flask", "./sub"]}]), context)
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    steps, seen = read_steps([{"pip": wheel.name}]), set()
    for content in (b"one", b"two"):
        wheel.write_bytes(content)
        seen.add(digest_steps(steps, context))
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("", False),
        ("# nothing\n-c more.txt\n", False),
        ('flask; python_version < "3"\n', False),
        ("flask\n", True),
        ("-r more.txt\n", True),
    ],
)
def test_a_step_wants_a_package_unless_markers_may_leave_out_all(tmp_path, text: str, wants: bool) -> None:
    (tmp_path / "reqs.txt").write_text(text)
    (tmp_path / "more.txt").write_text("flask\n")
    assert wants_package(Pip(wanted=("reqs.txt",)), Context.of(tmp_path)) is wants
    assert wants_package(Pip(wanted=("reqs.txt", "flask")), Context.of(tmp_path))
