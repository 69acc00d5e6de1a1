"""The languages that code can be in."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .control import become
from .driven import Node, Shell
from .interpreter import Interpreter

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable

    from .control import Control, Worker
    from .page import Page


@dataclass(frozen=True)
class Language:
    """How an interpreter of it is made, and the program that it needs, if any.

    One that is not renewed would draw the same numbers in every fork of the machine, so it begins anew there.
    """

    make: Callable[[Control], Worker]
    program: str = ""
    is_renewed: bool = True

    def find_missing(self) -> str | None:
        """What this machine lacks for it."""
        if self.program and shutil.which(self.program) is None:
            return f"the machine has no {self.program}"
        return None

    def serve(self, control: socket.socket, stdout: int, stderr: int, page: Page, outputs: select.epoll) -> None:
        """This process is an interpreter, and ends when nobody has its line any more."""
        line = become(control, stdout, stderr, page, outputs)
        worker = self.make(line)
        while (asked := line.next_request()) is not None:
            worker.run(asked)
        os._exit(0)


LANGUAGES = {
    "python": Language(Interpreter),
    "sh": Language(lambda control: Shell(control, "sh"), "sh"),
    "bash": Language(lambda control: Shell(control, "bash"), "bash"),
    "javascript": Language(Node, "node", is_renewed=False),
}
