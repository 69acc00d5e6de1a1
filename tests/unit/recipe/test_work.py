"""What a step reads of this host is what its recipe was named by, or the step fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vmfork.errors import ConfigError
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_steps
from vmfork.recipe.surroundings import Surroundings
from vmfork.recipe.wheels import GuestPython
from vmfork.recipe.words import read_steps
from vmfork.recipe.work import Work

STEPS = read_steps(
    [
        {"env": {"APP": "1"}},
        {"copy": ["app", "/srv/app"]},
        {"hooks": {"after_fork": "reseed"}},
        {"pip": "requirements.txt"},
    ]
)
FILES = {"copy": "app/main.py", "hooks": "reseed", "pip": "requirements.txt"}


class Agent:
    """Takes whatever it is sent, and calls `meanwhile`."""

    lost = None

    def __init__(self, meanwhile) -> None:
        self._meanwhile = meanwhile

    async def put(self, packing, path, **_options) -> None:
        packing.close()
        self._meanwhile(path)

    async def write_file(self, path, _content, **_options) -> None:
        self._meanwhile(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe's folder. Wheels are none, and nobody looks for them."""

    async def ask_python(_running) -> GuestPython:
        return GuestPython({}, 41)

    async def fetch_wheels(*_given) -> None:
        pass

    async def install_wheels(running, _folder, **_options) -> None:
        await running.agent.write_file("pip", b"")

    for stand_in in (ask_python, fetch_wheels, install_wheels):
        monkeypatch.setattr(f"vmfork.recipe.work.{stand_in.__name__}", stand_in)
    for name in FILES.values():
        path = tmp_path / "recipe" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    return tmp_path / "recipe"


def make_work(folder, *, behind: int = 0, meanwhile=lambda _path: None) -> Work:
    running = SimpleNamespace(agent=Agent(meanwhile), folder=SimpleNamespace(path=folder.parent))
    context = Context.of(folder)
    pins = digest_steps(STEPS, context)
    return Work(running, context, Surroundings(), behind=STEPS[:behind], pins=pins)


@pytest.mark.parametrize("behind", range(len(STEPS)))
async def test_what_stays_as_it_was_is_taken_wherever_a_build_goes_on(folder, behind) -> None:
    work = make_work(folder, behind=behind)
    for step in STEPS[behind:]:
        await work.do(step)
    assert work.surroundings.env == {"APP": "1"}


@pytest.mark.parametrize("word", FILES)
@pytest.mark.parametrize("is_meanwhile", [False, True])
async def test_what_changed_since_the_build_began_fails_its_step(folder, word, is_meanwhile) -> None:
    """Before the step is done, and while it is."""
    begun: list[str] = []

    def change(path: str = "") -> None:
        if not path or {"/srv/app": "copy", "pip": "pip"}.get(path, "hooks") == word:
            (folder / FILES[word]).write_text("two")

    work = make_work(folder, meanwhile=change if is_meanwhile else lambda _path: None)
    if not is_meanwhile:
        change()
    with pytest.raises(ConfigError, match=r"it changed (since the build began|while it was copied)") as caught:
        for step in STEPS:
            begun.append(next(iter(step.to_words())))
            await work.do(step)
    assert (caught.value.field, begun[-1]) == (word, word)


async def test_what_the_ignore_file_names_by_now_counts_too(folder) -> None:
    """A build reads it anew when it has booted its machine."""
    pins = make_work(folder)._pins
    (folder / ".vmforkignore").write_text("*.py\n")
    running = SimpleNamespace(agent=Agent(lambda _path: None))
    work = Work(running, Context.of(folder), Surroundings(), behind=STEPS[:1], pins=pins)
    with pytest.raises(ConfigError, match="it changed since the build began"):
        await work.do(STEPS[1])
