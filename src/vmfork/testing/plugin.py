"""Fixtures, the mark and the option. Importing it costs what pytest has loaded anyway.

| fixture | scope | |
| --- | --- | --- |
| `vm` | test | a fork, which ends with the test |
| `vm_factory` | test | `vm_factory(...)`: as many as the test asks for |
| `avm` | test | `await avm(...)`: the same on the test's own event loop, whoever runs that |
| `vm_template` | session | what they are forks of; `default`, unless a `conftest.py` has another |
| `vm_build` | session | `vm_build("web", recipe="vmfork.toml")`: a template, built once for all of pytest-xdist |

`@pytest.mark.vmfork(...)`: what `Template.fork` takes (`cpus`, `memory_mib`, `network`, `env`, `files`), and `template`
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

from vmfork.late import import_late

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import vmfork
    from vmfork.testing.machines import Machines

_KEY: pytest.StashKey[Machines] = pytest.StashKey()
_MARK = "vmfork(template=None, **options): what the test's machines are forks of, and what Template.fork is given"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--vmfork-keep`."""
    parser.getgroup("vmfork").addoption(
        "--vmfork-keep", action="store_true", help="leave the machines of a failed test running, and say how to get in"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark is known."""
    config.addinivalue_line("markers", _MARK)


@pytest.fixture(scope="session")
def vm_build() -> Callable[..., vmfork.Template]:
    """`vm_build(name, config, recipe=...)` opens that template; it was built first if none is made so.

    In place of a recipe, `warm_up` and `ready` are taken too (testing/template.py).
    """
    build: Callable[..., vmfork.Template] = import_late("vmfork.testing.template", "build_once")
    return build


@pytest.fixture(scope="session")
def vm_template(vm_build: Callable[..., vmfork.Template]) -> vmfork.Template:
    """The template whose forks tests get: `default`. A `conftest.py` may have one of its own."""
    return vm_build()


@pytest.fixture
def vm_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., vmfork.VM]]:
    """`vm_factory(...)` forks the template; the machine ends with the test. It takes what the mark takes, over that."""
    machines = _find_machines(request)
    yield machines.fork
    machines.close()


@pytest.fixture
def vm(vm_factory: Callable[..., vmfork.VM]) -> vmfork.VM:
    """A fork of the template, which ends with the test."""
    return vm_factory()


@pytest.fixture
def avm(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """`await avm(...)` is what `vm_factory(...)` is, for a test that has an event loop (asyncio)."""
    machines = _find_machines(request)
    yield machines.fork_async
    machines.close()


def _find_machines(request: pytest.FixtureRequest) -> Machines:
    """Those of the test, with what it was marked with. One is made for each test that asks."""
    item: pytest.Item = request.node
    if _KEY not in item.stash:
        options: dict[str, Any] = {}
        for mark in reversed([*item.iter_markers("vmfork")]):
            if mark.args:
                raise pytest.UsageError("the mark vmfork takes its arguments by name: vmfork(cpus=2)")
            options.update(mark.kwargs)
        # Here, where no event loop runs that a build would hold up.
        template = None if "template" in options else request.getfixturevalue("vm_template")
        machines: Machines = import_late("vmfork.testing.machines", "Machines")(item.nodeid, options, template)
        item.stash[_KEY] = machines
    return item.stash[_KEY]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that awaits, and is run by whoever ends its event loop with it, has its machines kept before that."""
    machines, test = pyfuncitem.stash.get(_KEY, None), pyfuncitem.obj
    is_kept = pyfuncitem.config.getoption("vmfork_keep") and pyfuncitem.get_closest_marker("xfail") is None
    if machines is None or not is_kept or not iscoroutinefunction(test):
        return (yield)
    pyfuncitem.obj = machines.keeping(test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What failed is told with what its machines have to say, while they are there."""
    report = yield
    if report.failed and report.when != "teardown" and (machines := item.stash.get(_KEY, None)) is not None:
        report.sections += machines.describe()
        if item.config.getoption("vmfork_keep"):
            report.sections += machines.keep()
    return report
