"""The blocks that README, guides and concepts print, and how each is run. `tests/vm/test_documents.py` runs them.

A page is followed from top to bottom, in one folder, as a reader would:

```
sh        a script of shell                      python    a program; saved under the name that the line above it gives
console   commands after "$ ", and their output  toml      a file; the line above it names it
(none)    what the block before prints
```
What the plain reading does not say stands in a comment above the block, out of the reader's sight:

```
<!-- not run: REASON -->                         nothing here can run it; the reason says who does
<!-- saved -->                                   a program that a later command of the page runs
<!-- in the checkout -->                         the script runs there
<!-- goes on until it prints: TEXT -->           the command goes on while the rest of the page is followed
<!-- goes on in its place until it prints: TEXT -->   the same, once the one that went on before was ended by Ctrl-C
<!-- numbers differ -->                          every number of this output is another in each run
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    sorted(
        page
        for page in (ROOT / "README.md", *ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/concepts/*.md"))
        if page.exists()
    )
)
LANGUAGES = ("sh", "console", "python", "toml")
GOES_ON = ("goes on until it prints", "goes on in its place until it prints")
MARKS = ("not run", "saved", "in the checkout", *GOES_ON, "numbers differ")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ([a-z ]+)(?:: ([^\n]*))? -->\n+\Z")
_NAMED = re.compile(r"`([\w.-]+\.(?:py|toml))`[^`]*:\n+\Z")


@dataclass(frozen=True)
class Block:
    """`mark` and `reason` are those of the comment above it; `name` is the file that the line above names."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""
    name: str = ""
    output: Block | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> str:
        """What a shell is given."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))

    @property
    def shown(self) -> list[str]:
        """The lines of output that the page shows."""
        if self.language == "console":
            return [line for line in self.text.splitlines() if not line.startswith("$ ")]
        return self.output.text.splitlines() if self.output else []


def read_blocks(page: Path) -> list[Block]:
    """The blocks of the page, each with the output that follows it."""
    text = page.read_text()
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        above = text[: match.start()]
        mark = _MARK.search(above)
        above = above[: mark.start()] if mark else above
        name = _NAMED.search(above)
        said = {"mark": mark[1], "reason": mark[2] or ""} if mark else {}
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page, line, match[1], match[2], **said, name=name[1] if name else "")
        before = found[-1] if found else None
        if not block.language and before and before.language in LANGUAGES and block.mark != "not run":
            found[-1] = Block(**{**vars(before), "output": block})
        else:
            found.append(block)
    return found


def fault_of(block: Block, later: str) -> str:
    """Why nobody would run the block, or nothing would come of it; empty where all is well. `later` is what follows."""
    if block.mark and block.mark not in MARKS:
        return f"no mark is called {block.mark!r}"
    if block.mark in ("not run", *GOES_ON) and len(block.reason) < len("see x"):
        return "its mark says nothing"
    if block.mark == "not run":
        return ""
    if block.language not in LANGUAGES:
        return "it is neither a program nor the output of one: mark why it is not run"
    if block.language == "console" and not block.commands:
        return "no line of it is a command"
    if block.language == "toml" and not block.name:
        return "the line above it names no file"
    if block.mark == "saved" and (not block.name or block.name not in later):
        return "it is saved, and no later command runs it"
    return ""
