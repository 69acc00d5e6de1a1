"""A pattern is looked for in a log that grows, piece by piece, however long that becomes."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

# What is found across two pieces is at most this long. One character more is kept, which `^` and `\b` look at.
_OVERLAP = 64 * 1024


class LogSearch:
    """Where a search has come to: `offset` is the byte that the next piece begins at."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self.offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kept = ""
        # Where to look in what is kept and what comes: not at the character before it, unless the log begins there.
        self._begin = 0

    def find(self, data: bytes, *, goes_on: bool) -> bool:
        """Whether the log has the pattern up to the end of `data`, which is what comes next of it.

        Where it is known that it `goes_on`, a line that has no end yet is left to the next piece, as it may not be all
        of that line; unless all of `data` is of one line.
        """
        self.offset += len(data)
        text = self._kept + self._decoder.decode(data)
        end = (text.rfind("\n", len(self._kept)) + 1 if goes_on else 0) or len(text)
        if self._pattern.search(text, self._begin, end) is not None:
            return True
        if (cut := end - _OVERLAP - 1) > 0:
            text, self._begin = text[cut:], 1
        self._kept = text
        return False
