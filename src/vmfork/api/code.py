"""Code in one call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.late import import_late
from vmfork.machine.programs import find_listeners
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from vmfork.code.result import CodeResult
    from vmfork.machine.decoding import OutputListener
    from vmfork.machine.running import Running
    from vmfork.wire.given import GuestPath

_GRACE_S = 5.0


@guarded
class GuestCode:
    """Code that is run in interpreters of the guest, which keep their state."""

    _running: Running

    async def run_code(
        self,
        code: str,
        language: str = "python",
        *,
        context: str | None = None,
        restart: bool = False,
        made_in: GuestPath = "",
        on_stdout: OutputListener | None = None,
        on_stderr: OutputListener | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = _GRACE_S,
        check: bool = False,
    ) -> CodeResult:
        """The code has ended; what it wrote, the value of its last expression, what it showed, and how it failed.

        It runs in the guest, as root, in an interpreter that keeps its state from call to call, and into templates and
        forks of the machine: `python`, `bash`, `sh`, or `javascript` where the image has Node.js. Each `context` has an
        interpreter of its own, begun at its first call, and at a call with `restart`. Calls to one context run one
        after the other. Where the template was frozen with the interpreter, it is found running.

        What the code raises is in the result, and no error unless `check` (`CodeError`). So is an end of its
        interpreter (`is_state_lost`); the next call begins a new one. After `timeout_s` seconds it is interrupted, as
        by Ctrl-C; `grace_s` seconds later its interpreter is killed, with what it has started. `DeadlineExceeded` has
        what it wrote, and says whether the state is lost. A shell ends when it is interrupted. On cancel, and when a
        listener raises, the same is done behind us. `on_stdout` and `on_stderr` are called with each piece of text, in
        the event loop; such output is in no result. Output and results together have at most `max_output` bytes; then
        `LimitExceeded` is raised, and the code interrupted.

        With `made_in`, a folder of the guest, `files` has what the code has made or changed below it, a thousand files
        at most, the first by name. They count for `max_output` too.

        Raises `ConfigError` for a language that is not known and for code that is no UTF-8, and `GuestError` when the
        machine has no Python 3, by which all of them are served.
        """
        # A machine that runs no code should not pay for it.
        code_given = import_late("vmfork.code.source", "Code")(
            source=code, language=language, context=context or "", restart=restart, made_in=os.fspath(made_in)
        )
        run_code = import_late("vmfork.code.call", "run_code")
        result: CodeResult = await run_code(
            self._running,
            code_given,
            listeners=find_listeners(on_stdout, on_stderr),
            max_output=max_output,
            timeout_s=timeout_s,
            grace_s=grace_s,
        )
        return result.check() if check else result
