"""An instance of vmfork of the test run's own, and the proof at the end that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.traces import look
from vmfork.aio import Template
from vmfork.config import Places, VMConfig, find_places
from vmfork.machine.folder import sweep_vms

RULES = ("again", "capabilities", "evidence", "examples", "leaks", "limits", "order", "telling", "times")
pytest_plugins = [f"tests.rules.{name}" for name in RULES]

TEMPLATE = "test"
HOME_KEY = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One HOME for all the processes of a parallel run: one of them builds the image, the others wait for it."""
    if config.getoption("numprocesses", None) and not os.environ.get("VMFORK_TEST_HOME"):
        config.stash[HOME_KEY] = os.environ["VMFORK_TEST_HOME"] = tempfile.mkdtemp(prefix="vmfork-test-home-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if (home := config.stash.get(HOME_KEY, None)) is not None:
        shutil.rmtree(home)


@pytest.fixture(scope="session", autouse=True)
def instance() -> Iterator[Places]:
    """HOME and RUNTIME are folders of this process of the run. VMFORK_TEST_HOME keeps the image between runs."""
    runtime = Path(tempfile.mkdtemp(prefix="vmfork-test-", dir="/dev/shm"))
    kept = os.environ.get("VMFORK_TEST_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="vmfork-test-home-"))
    os.environ["VMFORK_HOME"], os.environ["VMFORK_RUNTIME_DIR"] = str(home), str(runtime)
    places = find_places()
    yield places
    left = replace(look(places.vms, folders=[runtime], marked=runtime), descriptors=frozenset())
    sweep_vms(places.vms)
    shutil.rmtree(runtime, ignore_errors=True)
    if not kept:
        shutil.rmtree(home, ignore_errors=True)
    assert not left, f"the run left behind:\n{left}"


@pytest.fixture(scope="session")
def template_name(instance: Places) -> Iterator[str]:
    """One template for all tests with machines of this process of the run."""
    template = asyncio.run(
        Template.build(TEMPLATE, VMConfig(), warm_up=["echo warm > /root/marker", "cat /proc/uptime > /root/uptime"])
    )
    yield TEMPLATE
    asyncio.run(template.remove())
