"""The server of interpreters, as it runs in a guest: here on the host, with the same code and real processes."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

import vmfork.code
from tests.chaos.participants import descendants
from tests.children import wait_gone
from tests.rules.capabilities import need
from vmfork.code.frame import Answer, AnswerParser, Ask, encode_ask

CODE = Path(vmfork.code.__file__).parent / "python"
GUEST = CODE.parents[1] / "image" / "python"
LIMIT_S = 60


class Caller:
    """A connection to the server, which knows us."""

    def __init__(self, door: dict, path: Path | None = None) -> None:
        self._door = door
        if path is None:
            self._socket = socket.create_connection(("127.0.0.1", door["port"]))
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(path))
        self._socket.settimeout(LIMIT_S)
        self._parser = AnswerParser()
        self._name = secrets.token_hex(8)
        self.send(Ask.HELLO, f"{door['token']} {self._name}".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, kind: Ask, payload: bytes = b"") -> None:
        self._socket.sendall(encode_ask(kind, payload))

    def ask(self, code: str, language: str = "python", **options: object) -> None:
        asked = {"code": code, "language": language, "context": "", "restart": False, "env": {}, "made_in": ""}
        self.send(Ask.RUN, json.dumps({**asked, **options}).encode())

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def interrupt(self, grace_s: float = LIMIT_S) -> None:
        """By another connection: who reads this one is not known."""
        settle(self._door, encode_ask(Ask.INTERRUPT, f"{grace_s} {self._name}".encode()))

    def frames(self):
        """Until the call is done; and until the connection ends."""
        while data := self._socket.recv(65536):
            for frame in self._parser.feed(data):
                yield frame
                if frame.kind in (Answer.DONE, Answer.VALUE):
                    return

    def run(self, code: str, language: str = "python", **options: object) -> dict:
        self.ask(code, language, **options)
        return self.take()

    def again(self, code: str) -> dict:
        self.send(Ask.AGAIN, code.encode())
        return self.take()

    def take(self) -> dict:
        *before, (kind, payload) = self.frames()
        told = {kind: b"".join(payload for k, payload in before if k is kind) for kind in Answer}
        done = json.loads(payload) if kind is Answer.DONE else {"value": payload.decode(), "error": None}
        return {**done, "stdout": told[Answer.STDOUT].decode(), "files": told[Answer.FILES]}

    def is_closed(self) -> bool:
        return self._socket.recv(1) == b""


@pytest.fixture
def door(tmp_path):
    """Of a server of this test alone."""
    start(tmp_path)
    found = json.loads((tmp_path / "door").read_text())
    yield found
    # Its interpreters end when they find it gone, and whoever comes next would meet them still.
    pidfds = []
    for pid in (found["pid"], *descendants(found["pid"])):
        with suppress(ProcessLookupError):  # an interpreter that has ended by itself
            pidfds.append(os.pidfd_open(pid))
    for pidfd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in pidfds:
        assert wait_gone(pidfd, limit_s=LIMIT_S)
        os.close(pidfd)


def start(folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(GUEST)}
    argv = [sys.executable, str(CODE / "vmfork_code"), str(folder)]
    subprocess.run(argv, env=env, check=True, timeout=LIMIT_S)


def settle(door: dict, said: bytes = b"") -> None:
    """The server has done what there was to do, and heard this."""
    with Caller(door) as other:
        # What makes no sense is answered by an end.
        other.send_raw(said + encode_ask(Ask.HELLO))
        assert other.is_closed()


@contextmanager
def stopped(pid: int):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def caller(door):
    with Caller(door) as made:
        yield made


def test_a_unix_socket_leads_to_the_same_interpreters_and_its_end_is_seen_there(door, caller, tmp_path) -> None:
    with Caller(door, tmp_path / "line") as other:
        other.run("x = 1")
        assert other.again("x + 1")["value"] == "2"  # by the interpreter, which has the line now
    assert caller.run("x + 2")["value"] == "3"


def test_a_second_start_finds_the_first(door, tmp_path) -> None:
    start(tmp_path)
    assert json.loads((tmp_path / "door").read_text()) == door


@pytest.mark.parametrize(
    "sent",
    [
        encode_ask(Ask.RUN, b"{}"),
        encode_ask(Ask.HELLO, b"wrong"),
        struct.pack("!IB", 1 << 31, 0),
        struct.pack("!IB", 0, 77),
    ],
)
def test_who_does_not_know_the_token_is_let_go(door, caller, sent) -> None:
    with socket.create_connection(("127.0.0.1", door["port"]), LIMIT_S) as stranger:
        stranger.sendall(sent)
        assert stranger.recv(1) == b""
    assert caller.run("1 + 1")["value"] == "2"


def test_a_question_that_makes_no_sense_ends_its_connection_alone(door, caller) -> None:
    for payload in (b"{", b"[]", b'{"language": "cobol"}', b'{"language": []}'):
        with Caller(door) as other:
            other.send(Ask.RUN, payload)
            assert other.is_closed()
    assert caller.run("1 + 1")["value"] == "2"


def test_state_stays_and_another_context_has_none_of_it(caller) -> None:
    assert caller.run("x = 1\nprint('out')\nx")["value"] == "1"
    assert caller.run("x", context="other")["error"]["type"] == "NameError"
    assert caller.run("x + 1")["value"] == "2"
    assert caller.run("x", restart=True)["error"]["type"] == "NameError"


def test_code_may_await_and_be_defined_and_pickled(caller) -> None:
    assert caller.run("import asyncio\nawait asyncio.sleep(0)\nawait asyncio.sleep(0, 7)")["value"] == "7"
    code = "import pickle\nclass It: pass\npickle.loads(pickle.dumps(It())).__class__ is It"
    assert caller.run(code)["value"] == "True"
    traced = caller.run("def f():\n    return 1 / 0\nf()")["error"]["traceback"]
    assert "return 1 / 0" in traced
    assert "vmfork_code" not in traced
    assert caller.run("x = = 1")["error"]["traceback"].count("SyntaxError") == 1
    assert caller.run(" 1")["error"]["type"] == "IndentationError"


@pytest.mark.parametrize(
    "hostile",
    [
        "import os; os.close(0); os.close(1); os.close(2)",
        "import sys; sys.stdout.close(); sys.stderr = None; sys.stdin = 5",
        "import builtins; builtins.print = None; del builtins.print",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import threading; threading.Thread(target=lambda: None).start()",
        "raise BaseException('x')",
        "class E(Exception):\n    def __str__(self): raise E\nraise E",
        "class R:\n    def __repr__(self): 1/0\nR()",
        "class R:\n    def __repr__(self): return '\\udcff'\nR()",
        "class R:\n    def __getattr__(self, name): raise KeyboardInterrupt\nR()",
        "def f(): f()\nf()",
        "'(' * 100_000",
        "(" * 10_000,
        "import gc; gc.collect(); gc.disable()",
        "import os\nfor _ in range(3):\n    if not os.fork(): raise SystemExit\n    os.wait()",
        "import os, time\nif not os.fork():\n    print('later', flush=True)\n    time.sleep(60)",
        "display(b'x' * 40_000_000)",
        "del __builtins__, display",
        "import sys; sys.modules.clear()",
        "import os; os.write(3, b'\\0\\0\\0\\2\\4{}')",
        "import os; os.write(3, b'\\xff' * 99)",
        "import os; os.kill(os.getppid(), 0)",
    ],
)
def test_whatever_code_does_the_call_ends_and_the_next_is_answered(door, caller, hostile) -> None:
    caller.run(hostile)
    # It may have been told of as done before it was: the rest of it is nobody's.
    caller.interrupt(0)
    with Caller(door) as other:
        assert other.run("import os, sys; 40 + 2", restart=True)["value"] == "42"
        assert other.run("x = 'it'; x")["value"] == "'it'"


def test_output_without_end_waits_for_its_reader_and_is_interrupted(door, caller) -> None:
    caller.ask("while True: print('x' * 1000)")
    frames = caller.frames()
    for _ in range(100):
        assert next(frames).kind is Answer.STDOUT
    caller.interrupt()
    *_, done = frames
    assert json.loads(done.payload)["error"]["type"] == "KeyboardInterrupt"
    with Caller(door) as other:
        assert other.run("1")["value"] == "1"


@pytest.mark.parametrize("is_lent", [False, True])
def test_an_interrupt_that_comes_before_the_code_runs_is_for_it(door, caller, is_lent) -> None:
    caller.run("x = 1")
    for _ in range(25):
        with Caller(door) as other:
            if is_lent:
                other.run("y = 1")
                other.send(Ask.AGAIN, b"while True: pass")
            else:
                other.ask("while True: pass")
            other.interrupt()
            assert other.take()["error"]["type"] == "KeyboardInterrupt"
    assert caller.run("x")["value"] == "1"


def test_who_was_given_up_asks_for_nothing_more(caller) -> None:
    caller.run("x = 1")
    caller.interrupt()
    assert caller.again("x")["error"]["type"] == "KeyboardInterrupt"


def test_what_is_asked_again_is_answered_by_the_interpreter_alone(door, caller) -> None:
    caller.run("x = 1")
    settle(door)
    with stopped(door["pid"]):
        for _ in range(3):
            assert caller.again("x += 1; x")["value"] is not None
        assert caller.again("1 / 0")["error"]["type"] == "ZeroDivisionError"
        assert caller.again("class R:\n    def _repr_html_(self): return 'h'\nR()")["error"] is None
    # What it writes goes by the server, and comes before its end.
    assert caller.again("print('it'); import os; os.system('echo its own')")["stdout"] == "it\nits own\n"
    assert caller.again("x")["value"] == "4"


def test_a_call_of_more_than_code_goes_back_to_the_server(door, caller) -> None:
    caller.run("x = 1")
    assert caller.run("x = 5", context="other")["error"] is None
    assert caller.again("x")["value"] == "5"
    assert caller.run("x")["value"] == "1"
    assert len(caller.again(f"'{'y' * 300_000}'")["value"]) == 300_002
    assert caller.again("x")["value"] == "1"
    assert caller.run("x", restart=True)["error"]["type"] == "NameError"


def test_calls_of_two_that_ask_in_turn_are_all_answered(door, caller) -> None:
    with Caller(door) as other:
        caller.run("x = 0")
        other.run("x")
        for number in range(20):
            caller.send(Ask.AGAIN, b"x += 1")
            other.send(Ask.AGAIN, b"x += 1")
            assert caller.take()["error"] is None
            assert other.take()["error"] is None
            assert caller.again("x")["value"] == str(2 * number + 2)


def test_a_frame_that_comes_in_pieces_is_one(door, caller) -> None:
    caller.run("x = 1")
    frame = encode_ask(Ask.AGAIN, b"x + 1")
    for byte in frame[:-1]:
        caller.send_raw(bytes([byte]))
        settle(door)
    caller.send_raw(frame[-1:])
    assert caller.take()["value"] == "2"


def test_an_interpreter_that_ends_in_a_call_it_took_itself_is_told(caller) -> None:
    for code, how in (
        ("import os; print('last', flush=True); os._exit(3)", "status 3"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        # It ends by itself, or is killed as one that nobody can reach any more, whichever comes first.
        ("import os; os.closerange(0, 10_000)", "SIGKILL|status 70"),
    ):
        caller.run("x = 1")
        done = caller.again(code)
        assert done["is_lost"]
        assert re.search(how, done["error"]["message"])
        assert caller.again("x")["error"]["type"] == "NameError"


def test_an_interpreter_that_heeds_nobody_is_killed_in_a_call_it_took_itself(door, caller) -> None:
    caller.run("import signal; x = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])")
    caller.send(Ask.AGAIN, b"print('begun', flush=True)\nwhile True: pass")
    frames = caller.frames()
    next(frames)
    caller.interrupt(0.1)
    *_, done = frames
    assert json.loads(done.payload)["is_lost"]
    with Caller(door) as other:
        assert other.run("x")["error"]["type"] == "NameError"


def test_what_is_written_all_the_time_mixes_with_no_answer(caller) -> None:
    code = "import os, threading\ndef write():\n while is_on: os.write(1, b'x' * 99)\nis_on = True"
    caller.run(f"{code}\nthread = threading.Thread(target=write)\nthread.start()")
    for number in range(60):
        done = caller.again(str(number))
        assert done["value"] == str(number)
        assert set(done["stdout"]) <= {"x"}
    assert caller.again("is_on = False; thread.join()")["error"] is None


def test_what_a_call_left_running_writes_into_no_later_call(door, caller, tmp_path) -> None:
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "gone")
    left = f"import os\nif not os.fork():\n open({str(tmp_path / 'go')!r}).read()\n os.write(1, b'late')"
    caller.run(f"{left}\n open({str(tmp_path / 'gone')!r}, 'w').close()\n os._exit(0)")
    (tmp_path / "go").write_text("")
    (tmp_path / "gone").read_text()
    settle(door)
    assert caller.again("1")["stdout"] == ""


@pytest.mark.parametrize("is_lent", [False, True])
def test_who_leaves_takes_its_code_along_and_not_the_state(door, caller, is_lent) -> None:
    caller.run("x = 1")
    endless = "print('begun', flush=True)\nwhile True: pass"
    with Caller(door) as leaving:
        if is_lent:
            leaving.run("1")
            settle(door)
            leaving.send(Ask.AGAIN, endless.encode())
        else:
            leaving.ask(endless)
        next(leaving.frames())
    done = caller.run("x")
    assert done["value"] == "1", done


def test_the_environment_is_what_the_host_says_and_code_may_change_it(caller) -> None:
    read = "import os\n[os.environ.get(name) for name in ('A', 'B')]"
    assert caller.run(read, env={"A": "1"})["value"] == "['1', None]"
    caller.run("os.environ['A'] = 'mine'", env={"A": "1"})
    assert caller.run(read, env={"A": "1"})["value"] == "['mine', None]"
    assert caller.run(read, env={"B": "2"})["value"] == "[None, '2']"
    shown = caller.run('echo "$A$B"', "sh", env={"A": "it's "})["stdout"]
    assert shown == "it's \n"
    assert caller.run('echo "$A"', "sh", env={})["stdout"] == "\n"


def test_a_shell_goes_on_when_code_removes_what_it_was_read_from(caller) -> None:
    caller.run('rm -f "$vmfork_code"; rmdir "${vmfork_code%/*}"', "sh")
    assert caller.run("echo on", "sh")["stdout"] == "on\n"


def test_files_that_were_made_are_named(caller, tmp_path) -> None:
    (tmp_path / "old").write_text("old")
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w').write('new')\nimport os\nos.symlink('made', {str(tmp_path / 'link')!r})"
    assert json.loads(caller.run(code, made_in=str(tmp_path))["files"]) == ["made"]


def test_figures_that_code_leaves_open_are_shown_as_pictures_and_closed(caller) -> None:
    need("matplotlib")
    caller.ask("import matplotlib.pyplot as plot\nfigure = plot.figure()\nfigure.gca().plot([1, 2])\nNone")
    shown = [json.loads(payload) for kind, payload in caller.frames() if kind is Answer.RESULT]
    assert [base64.b64decode(each["image/png"])[:8] for each in shown] == [b"\x89PNG\r\n\x1a\n"]
    assert "Figure" in shown[0]["text/plain"]
    assert caller.run("plot.get_fignums()")["value"] == "[]"


def test_javascript_keeps_its_state_and_ends_when_it_is_interrupted(door, caller) -> None:
    need("node")
    first = caller.run("let x = 5; console.log('out'); x + 1", "javascript")
    assert (first["stdout"], first["value"]) == ("out\n", "6")
    assert caller.run("Promise.resolve(x)", "javascript")["value"] == "5"
    assert caller.run("throw new TypeError('no')", "javascript")["error"]["type"] == "TypeError"
    assert caller.run("x", "javascript")["value"] == "5"
    for endless in ("while (true) {}", "new Promise(() => {})"):
        with Caller(door) as other:
            other.ask(f"console.log('begun'); {endless}", "javascript")
            frames = other.frames()
            next(frames)
            other.interrupt()
            *_, done = frames
            assert "SIGINT" in json.loads(done.payload)["error"]["message"]
    assert "status 4" in caller.run("process.exit(4)", "javascript")["error"]["message"]
