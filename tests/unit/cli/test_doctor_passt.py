"""What doctor says of passt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vmfork.cli.doctor import _check_passt
from vmfork.host import passt


async def test_a_host_without_it_is_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(passt, "shutil", SimpleNamespace(which=lambda _: None))
    check = await _check_passt()
    assert (check.name, check.level) == ("passt", "note")
    assert "passt was not found on PATH" in check.found
    assert "apt-get install passt" in check.todo


@pytest.mark.needs("passt")
async def test_one_that_is_there_is_told_with_its_version_if_it_has_one() -> None:
    check = await _check_passt()
    assert (check.name, check.level, check.todo) == ("passt", "ok", "")
    found = await passt.find_passt()
    assert str(found.path) in check.found
    assert (found.version or "does not tell its version") in check.found
