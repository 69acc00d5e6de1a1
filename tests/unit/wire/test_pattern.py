"""Patterns of names."""

from __future__ import annotations

import pytest

from vmfork.errors import ConfigError
from vmfork.wire.pattern import Pattern


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("*.py", ["a.py", "sub/a.py", ".py"], ["a.pyc", "a.py/b", "a.PY"]),
        ("?", ["a", "x/b"], ["ab", ""]),
        ("[!ab]x", ["cx"], ["ax", "bx"]),
        ("[]]", ["]"], ["["]),
        ("src/*.py", ["src/a.py"], ["src/sub/a.py", "a.py", "x/src/a.py"]),
        ("src/**/*.py", ["src/a.py", "src/b/c/a.py"], ["a.py", "srcs/a.py"]),
        ("**/a", ["a", "b/a", "b/c/a"], ["a/b"]),
        ("**", ["a", "a/b"], []),
        ("a/**", ["a", "a/b", "a/b/c"], ["b"]),
        ("**/" * 40 + "x", ["x", "/".join("ab" * 20) + "/x"], ["/".join("ab" * 40)]),
        ("*a" * 40, ["a" * 80], ["a" * 80 + "b"]),
    ],
)
def test_a_pattern_fits_what_a_shell_says(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    made = Pattern(pattern, field="glob")
    assert [path for path in (*fits, *fits_not) if made.matches(path)] == fits


@pytest.mark.parametrize(
    "text", ["", "/abs", "a//b", "a/", "../a", "./a", "a\0", "a**", "x/**b/c", "[a", "x/[!]", "[]"]
)
def test_what_is_no_pattern_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="glob"):
        Pattern(text, field="glob")


def test_a_name_that_is_no_utf8_can_fit() -> None:
    assert Pattern("*.t", field="glob").matches("\udcff.t")
