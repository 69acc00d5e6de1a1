"""Programs that are started get nothing of their owner's environment but what each needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vmfork.host.environ import bare_environ, proxy_environ

PACKAGE = Path(__file__).parents[3] / "src" / "vmfork"
STARTERS = {"Popen", "create_subprocess_exec", "create_subprocess_shell", "check_output", "check_call"}


def test_a_program_finds_others_and_speaks_plainly(monkeypatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert set(bare_environ()) == {"PATH", "LC_ALL"}


def test_proxies_are_passed_on_in_both_spellings_and_only_where_set(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("API_KEY", "secret")
    assert proxy_environ() == {"https_proxy": "http://proxy.example:1", "NO_PROXY": "localhost"}


def starts(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    is_run = node.func.attr == "run" and isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess"
    return is_run or node.func.attr in STARTERS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_whoever_starts_a_program_says_what_its_environment_is(path: Path) -> None:
    text = path.read_text()
    if "subprocess" not in text:
        return
    for call in filter(starts, ast.walk(ast.parse(text))):
        assert "env" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"
