"""The layers as docs/concepts/architecture.md draws them: every import of the package points down."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vmfork"
SUITE = ROOT / "benchmarks"
DRAWING = ROOT / "docs" / "concepts" / "architecture.md"

# Names that say nothing of what is inside, so that everything ends up there.
VAGUE = {"common", "helper", "helpers", "manager", "managers", "misc", "tools", "util", "utils"}

# The modules that import by name, through `late.py`; what their tables name counts as imported.
LAZY = {
    "__init__.py", "aio.py", "cli/main.py", "api/vm.py", "api/code.py", "host/zstd.py", "oci/door.py",
    "testing/plugin.py", "cluster/cluster.py", "cluster/joined.py", "cli/cluster.py",
    "machine/prepare.py", "template/recipe_machine.py",  # container images, which few machines and recipes are of
}  # fmt: skip
# A template gives machines, and a machine a template: their modules name each other for type checking.
NAMING_EACH_OTHER = {"vmfork.api.vm": {"vmfork.api.template"}}


def read_layers(text: str) -> list[list[str]]:
    """The names of each layer, top first: what stands on a line of the drawing before two spaces."""
    drawing = text.split("```")[1]
    return [re.split(r"\s{2,}", line)[0].split(", ") for line in drawing.strip().splitlines()]


LAYERS = read_layers(DRAWING.read_text())
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parse(source: str) -> ast.Module:
    """Most are asked about several times."""
    return ast.parse(source)


def part_of(path: Path) -> str:
    """The first part of a module's name: a package directly below vmfork, or a module there."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(tree: ast.Module, *, package: str) -> list[tuple[int, str]]:
    """Line and full name of all that is imported anywhere: at the top, in a function, or for type checking only."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def named_in_tables(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and full name of all that a lazy module imports by name: `"vmfork.blocking"` in its table."""
    texts = [(node.lineno, node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [(line, text) for line, text in texts if isinstance(text, str) and re.fullmatch(r"vmfork(\.\w+)+", text)]


def part_imported(name: str) -> str | None:
    """The part of vmfork that `name` lies in; `None` for what is not of the package."""
    first, _, rest = name.partition(".")
    if first != "vmfork":
        return None
    part = rest.split(".")[0]
    return part if part in LEVEL else "__init__"


def wrong_imports(path: str, source: str) -> list[str]:
    own = Path(path).parts[0].removesuffix(".py")
    tree = parse(source)
    names = imported_names(tree, package=".".join(("vmfork", *Path(path).parts[:-1])))
    return [
        f"{path}:{line}: {own} imports {name}"
        for line, name in names + (named_in_tables(tree) if path in LAZY else [])
        if (part := part_imported(name)) is not None and part != own and LEVEL[part] <= LEVEL[own]
    ]


def test_the_drawing_names_every_part_and_no_other() -> None:
    assert sorted(LEVEL) == sorted({part_of(path) for path in MODULES})
    assert sum(len(names) for names in LAYERS) == len(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path) -> None:
    assert wrong_imports(str(path.relative_to(PACKAGE)), path.read_text()) == []


def test_every_kind_of_import_is_seen() -> None:
    """The check itself can fail: up, sideways, lazily, for types, relatively, from a table."""
    for line in (
        "import vmfork.machine",
        "from vmfork import machine",
        "from vmfork.store import Manifest",
        "from vmfork.agent.client import AgentClient",
        "def f():\n    import vmfork.cli.main",
        "if TYPE_CHECKING:\n    from vmfork.factory import Factory",
        "from ...template import Template",
        "from vmfork import __version__",
    ):
        assert len(wrong_imports("hypervisor/qemu/command.py", line)) == 1, line
    assert len(wrong_imports("aio.py", "HOME = {'VM': 'vmfork.blocking'}")) == 1
    for line in ("from vmfork.host import facts", "from ..base import RAM", "import vmfork.errors", "import asyncio"):
        assert wrong_imports("hypervisor/qemu/command.py", line) == [], line


@pytest.mark.parametrize("root", [PACKAGE, SUITE], ids=lambda root: root.name)
def test_the_package_does_not_know_the_suite(root) -> None:
    """The suite measures the package; what is in the wheel does without it."""
    knowing = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(name.split(".")[0] == "benchmarks" for _, name in imported_names(parse(path.read_text()), package=""))
    ]
    assert bool(knowing) == (root == SUITE), knowing


def modules_below(root: Path) -> dict[str, Path]:
    """Every module below `root` by its full name."""
    above = root.parent
    while (above / "__init__.py").exists():
        above = above.parent
    names = {path: ".".join(path.relative_to(above).with_suffix("").parts) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports_among(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which of `modules` each of them imports, anywhere in it."""
    found = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = {name for _, name in imported_names(parse(path.read_text()), package=package)}
        found[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & modules.keys() - {module}
    return found


def circles(imports: dict[str, set[str]]) -> set[str]:
    """The modules that import each other, at first or second hand: what is left when all others are taken away."""
    left = {module: set(names) for module, names in imports.items()}
    while free := {m for m, names in left.items() if not names or not any(m in others for others in left.values())}:
        left = {module: names - free for module, names in left.items() if module not in free}
    return {*left}


@pytest.mark.parametrize(
    "root",
    [SUITE, *(path for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file())],
    ids=lambda root: root.name,
)
def test_no_circle_in_a_room(root) -> None:
    imports = imports_among(modules_below(root))
    for module, named in NAMING_EACH_OTHER.items():
        if module in imports:
            assert only_for_types(PACKAGE / "api" / "vm.py", named)
            imports[module] -= named
    assert circles(imports) == set()


def only_for_types(path: Path, modules: set[str]) -> bool:
    """Whether the file imports these modules nowhere but for type checking."""
    tree = parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node))]
    return not {name.rpartition(".")[0] for _, name in imported_names(tree, package="")} & modules


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


def test_what_tests_import_is_there() -> None:
    """Tests with machines are collected by the whole run alone; a name they miss shall not wait for that."""
    missing = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for line, name in imported_names(parse(path.read_text()), package=""):
            first, *rest = name.split(".")[:-1] or [name]
            folder = ROOT.joinpath("tests", *rest)
            known = folder.is_dir() or folder.with_suffix(".py").is_file() if first == "tests" else is_installed(first)
            missing += [] if known else [f"{path.relative_to(ROOT)}:{line}: {name}"]
    assert missing == []


@functools.cache
def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None or name in fuzzers()


def fuzzers() -> list[str]:
    """What `make fuzz` installs for itself; the set-up of the tests does not."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [re.split(r"[^\w-]", requirement)[0] for requirement in groups["fuzz"]]


def modules_that_say(pattern: str) -> set[str]:
    return {str(path.relative_to(PACKAGE)) for path in MODULES if re.search(pattern, path.read_text())}


def test_only_the_lazy_tables_import_by_name_and_through_one_door() -> None:
    assert modules_that_say(r"import_module|__import__") == {"late.py"}
    assert modules_that_say(r"from vmfork\.late import") == LAZY


def late_imports(path: Path) -> list[tuple[int, bool]]:
    """Lines of imports inside functions, and whether each says why: beside it, or on the line above it."""
    lines = path.read_text().splitlines()
    functions = [n for n in ast.walk(parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    found = {n.lineno for f in functions for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))}
    return [(n, "PLC0415 - " in lines[n - 1] or lines[n - 2].lstrip().startswith("#")) for n in sorted(found)]


def test_late_imports_are_few_and_say_why() -> None:
    """They are for start-up time that was measured, and for optional extras; not for imports in a circle."""
    late = [(path, *found) for path in MODULES if "_pb2" not in path.name for found in late_imports(path)]
    assert [f"{path.relative_to(PACKAGE)}:{line}" for path, line, says_why in late if not says_why] == []
    assert len(late) <= 15


def test_modules_are_named_for_what_they_hold() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert names & VAGUE == set()


def test_qemu_is_asked_for_at_its_door() -> None:
    """Only the package itself knows its modules: another hypervisor, or another emulator, is added behind it."""
    door = "vmfork.hypervisor.qemu"
    inside = {f"{door}.{path.stem}" for path in (PACKAGE / "hypervisor" / "qemu").glob("*.py")}
    past = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in MODULES
        if (PACKAGE / "hypervisor") not in path.parents
        for line, name in imported_names(parse(path.read_text()), package="vmfork")
        if any(name == module or name.startswith(f"{module}.") for module in inside)
    ]
    assert past == []
