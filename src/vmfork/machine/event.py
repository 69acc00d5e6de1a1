"""What happens while a program runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vmfork.machine.result import ExecResult


@dataclass(frozen=True, slots=True)
class ProgramEvent:
    """Something that a program wrote, or, as the last one, its end.

    `data` holds the bytes of a piece, `text` the same as text where an encoding was asked for: a character that is cut
    in two comes with the second piece. `result` is there at the end, without output.
    """

    kind: Literal["stdout", "stderr", "end"]
    data: bytes = b""
    text: str = ""
    result: ExecResult | None = None
