"""Code is cut into statements and a last expression without a tree, and is what it is by way of one."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmfork.code

CODE = Path(vmfork.code.__file__).parent / "python"
# What begins something, goes on with it, or ends it; and what only looks so.
LINES = (
    "x = 1", "x", "", "   ", "\tx", "\f", "# c", "# \\", "if x:", "    x", "else:", "try:", "except:", "def f():",
    "    return 1", "class A: pass", "@d", "match x:", "  case 1: x", "(1,", "2)", ")", "[1,", "]", "{'a':", "1}",
    '"""', 'a"""', "'''", "'", "x = \\", "x = '\\", "r'\\'", "f'{", "}'", "1 if x else\\", "x; x", "x = 2; x",
    "x: int = 1", "if x: x", "await g", "yield x", "return x", "-1", "not x", "*x,", "lambda: 0",
    "from __future__ import annotations", "\r", "x\r", "\0", "print('a', end='')",
)  # fmt: skip


@pytest.fixture(scope="module")
def interpreter():
    """The module, as a guest has it."""
    before = [*sys.path]
    sys.path[:0] = [str(CODE), str(CODE.parents[1] / "image" / "python")]
    try:
        yield import_module("vmfork_code.interpreter")
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.split(".")[0] in ("vmfork_code", "vmfork_guest")]:
            del sys.modules[name]


# It says something of code with annotations, and none is behind it.
CO_FUTURE = 0xFFF0000


def describe(code):
    """All of it that running it shows."""
    if code is None:
        return None
    constants = [describe(each) if hasattr(each, "co_code") else repr(each) for each in code.co_consts]
    return code.co_code, code.co_names, constants, code.co_flags & ~CO_FUTURE, [line for *_, line in code.co_lines()]


def cut(how, source: str):
    """Statements and expression; the kind of error where it is not Python."""
    try:
        statements, expression = how(source, "<code>")
    except (SyntaxError, ValueError) as error:
        return type(error)
    return describe(statements or compile("", "<code>", "exec")), describe(expression)


@given(st.lists(st.sampled_from(LINES), max_size=7).map("\n".join))
@pytest.mark.filterwarnings("ignore")
def test_it_is_what_it_is_by_way_of_a_tree(interpreter, source) -> None:
    (ours, last), (theirs, wanted) = [
        found if isinstance(found, tuple) else (found, found)
        for found in (cut(interpreter._compile, source), cut(interpreter._compile_tree, source))
    ]
    assert last == wanted
    # Where nothing but comments is before the last expression there is code that does nothing, or none.
    assert ours == theirs or (ours[:3] == theirs[:3] and wanted is not None)


@pytest.mark.parametrize(
    ("source", "is_cut"),
    [
        ("x = 1\nx", True),
        ("x = 1\n\nf(\n  x\n)\n", False),
        ("x\n", True),
        ("def f():\n    pass\nf(1,\n  2)  # c\n", True),
        (" x", False),
        ("x = 1", False),
        ("", False),
    ],
)
def test_most_needs_no_tree(interpreter, monkeypatch, source, is_cut) -> None:
    trees = []
    monkeypatch.setattr(interpreter, "_compile_tree", lambda *given: trees.append(given) or (None, None))
    _, last = interpreter._compile(source, "<code>")
    assert (trees == [], last is not None) == (is_cut, is_cut)


def test_lines_are_counted_from_the_first(interpreter) -> None:
    _, last = interpreter._compile("x = 1\n\nx", "<code>")
    assert [line for *_, line in last.co_lines()][-1] == 3
