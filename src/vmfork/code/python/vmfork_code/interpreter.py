"""Python code, run in a namespace that stays."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of CPython, where it is in no stub
import ast
import builtins
import faulthandler
import inspect
import io
import linecache
import os
import signal
import sys
import traceback
import types
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import vmfork_guest

from .control import change_env
from .page import STOPPED
from .rich import MOST_TEXT, PLAIN, cut, describe, take_figures

if TYPE_CHECKING:
    from .control import Control, Request

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_MOST_SOURCES = 500
_MOST_TRACEBACK = 200_000
# `signal.getsignal` looks for a name of what it finds, and fails at a function: fifty times as long.
_get_handler = _signal.getsignal
_SIGINT = int(signal.SIGINT)
_OURS = os.path.dirname(os.path.abspath(__file__))


class Interpreter:
    """Runs code as the lines of a notebook. Forks of the machine draw numbers of their own."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._words = control.page.words
        self._pid = os.getpid()
        self._count = 0
        self._is_interruptible = False
        self._loop: Any = None
        self._module = types.ModuleType("__main__")
        self._names = vars(self._module)
        self._names.update(display=self._display, __builtins__=builtins)
        sys.modules["__main__"] = self._module
        sys.path[:2] = [""]
        sys.argv = [""]
        os.environ.setdefault("MPLBACKEND", "Agg")
        # A thread of the watcher is there whenever code forks: it waits, and holds no lock.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        vmfork_guest.watch()
        self._handler = self._on_interrupt
        self._renew_streams()
        self._tidy()

    def run(self, asked: Request) -> None:
        """The code was run. A process that it forked, and that comes back here, has ended."""
        source, env, _ = asked
        if env:
            change_env(env)
        shown = error = None
        try:
            try:
                self._is_interruptible = True
                if self._words[STOPPED]:
                    raise KeyboardInterrupt
                shown = self._execute(source)
                if "matplotlib.pyplot" in sys.modules:
                    take_figures(self._show)
            finally:
                self._is_interruptible = False
        except BaseException as raised:
            error = _describe_error(raised)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:  # code may have closed one, or put anything in its place
            self._flush()
        if os.getpid() != self._pid:
            os._exit(0 if error is None else 1)
        if type(shown) is str and error is None:
            self._control.send_value(shown)
        else:
            self._answer(shown, error)
        # No call waits for the rest. On one processor the agent would, which passes the answer on.
        os.sched_yield()
        self._tidy()

    def _answer(self, shown: dict[str, Any] | str | None, error: dict[str, str] | None) -> None:
        """The call is done, with what its last expression looks like."""
        if shown is None or error is not None:
            self._control.send_done(error=error)
        elif isinstance(shown, str):
            self._control.send_value(shown)
        else:
            self._control.send_done(value=shown["text/plain"])

    def _execute(self, source: str) -> dict[str, Any] | str | None:
        """The last expression as it is shown, where it ends with one that is not None; text if it has no other."""
        self._count += 1
        name = _name(self._count)
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
        if self._count > _MOST_SOURCES:
            linecache.cache.pop(_name(self._count - _MOST_SOURCES), None)
        statements, expression = _compile(source, name)
        if statements is not None:
            self._evaluate(statements)
        if expression is None:
            return None
        found = eval(expression, self._names)
        if expression.co_flags & inspect.CO_COROUTINE:
            found = self._await(found)
        if found is None:
            return None
        self._names["_"] = found
        if type(found) in PLAIN and (text := repr(found)).isascii() and len(text) <= MOST_TEXT:
            return text
        shown = describe(found)
        if len(shown) == 1:
            text = shown["text/plain"]
            return str(text)
        self._show(shown)
        return shown

    def _evaluate(self, code: types.CodeType) -> None:
        found = eval(code, self._names)
        if code.co_flags & inspect.CO_COROUTINE:
            self._await(found)

    def _await(self, coroutine: Any) -> object:
        if self._loop is None:
            # Loading it takes a while under TCG, and most code awaits nothing.
            found: dict[str, Any] = {}
            exec("import asyncio", found)
            self._loop = found["asyncio"].new_event_loop()
        return self._loop.run_until_complete(coroutine)

    def _display(self, *objects: object) -> None:
        """Shows each as a notebook does."""
        for each in objects:
            self._show(describe(each))

    def _show(self, data: dict[str, Any]) -> None:
        if os.getpid() == self._pid:
            self._flush()
            self._control.send_result(data)

    def _tidy(self) -> None:
        """What code did to the streams and to the way of interrupts is undone, where it did."""
        if _get_handler(_SIGINT) is not self._handler:
            signal.signal(_SIGINT, self._handler)
        is_changed = self._control.restore_streams()
        if is_changed or not self._has_streams():
            self._renew_streams()

    def _has_streams(self) -> bool:
        # Written out, as all that is done for each call.
        stdin, stdout, stderr = self._streams
        try:
            are_ours = sys.stdin is stdin and sys.stdout is stdout and sys.stderr is stderr
            return are_ours and not (stdin.closed or stdout.closed or stderr.closed)
        except (AttributeError, ValueError):
            return False  # one was taken away, or detached

    def _renew_streams(self) -> None:
        self._streams = open(0, closefd=False), _open_output(1), _open_output(2)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        faulthandler.enable(2)

    def _flush(self) -> None:
        for name in ("stdout", "stderr"):
            with suppress(Exception):  # code may have closed it, or put anything in its place
                getattr(sys, name).flush()

    def _on_interrupt(self, _number: int, _frame: object) -> None:
        if self._is_interruptible:
            self._is_interruptible = False
            raise KeyboardInterrupt


def _name(count: int) -> str:
    return f"<code {count}>"


def _compile(source: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """Its statements, and its last expression, where it has them.

    By way of a tree it takes three times as long, and more in a fork, whose emulator has not met any of this yet.
    """
    begin = _find_last(source)
    try:
        # By itself a space before an expression is none too many.
        if not source[begin : begin + 1].isspace():
            expression = _compile_text("\n" * source.count("\n", 0, begin) + source[begin:], name, "eval")
            # Both are whole: what is before that line does not go on in it.
            return _compile_text(source[:begin], name, "exec") if begin else None, expression
    except SyntaxError:
        pass  # the last expression may have several lines that begin so; or the tree tells what is wrong
    return _compile_tree(source, name)


def _find_last(source: str) -> int:
    """Where the last line begins that begins with no space."""
    end = len(source.rstrip())
    while (begin := source.rfind("\n", 0, end) + 1) and source[begin : begin + 1].isspace():
        end = begin - 1
    return begin


def _compile_text(source: str, name: str, mode: str) -> types.CodeType:
    code: types.CodeType = compile(source, name, mode, _FLAGS, dont_inherit=True)
    return code


def _compile_tree(source: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    tree = compile(source, name, "exec", _FLAGS | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    expression = ast.Expression(tree.body.pop().value) if isinstance(last, ast.Expr) else None
    return (
        compile(tree, name, "exec", _FLAGS, dont_inherit=True) if tree.body else None,
        None if expression is None else compile(expression, name, "eval", _FLAGS, dont_inherit=True),
    )


def _open_output(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _describe_error(raised: BaseException) -> dict[str, str]:
    """As data. What is ours of the traceback is left out."""
    try:
        told: Any = traceback.TracebackException.from_exception(raised)
        each = told
        while each is not None:
            each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_OURS)]
            each = each.__cause__ or each.__context__
        text = "".join(told.format())
    except Exception as error:
        text = f"{type(raised).__name__}: its traceback cannot be shown: {type(error).__name__}\n"
    try:
        message = str(raised)
    except Exception as error:
        message = f"its message cannot be shown: {type(error).__name__}"
    return {"type": type(raised).__name__, "message": cut(message), "traceback": cut(text, _MOST_TRACEBACK)}
