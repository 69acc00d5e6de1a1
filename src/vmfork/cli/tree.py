"""Things below what they come from, as lines draw it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")


class Tree(Generic[T]):
    """`things` in their order, each below the nearest of its `line` that is among them; at the top where none is.

    `name` tells one from all others. `line` is what a thing comes from by that name, the nearest last.
    """

    def __init__(self, things: Sequence[T], *, name: Callable[[T], str], line: Callable[[T], Sequence[str]]) -> None:
        self._name = name
        self._below: dict[str, list[T]] = {}
        names = {name(each) for each in things}
        for each in things:
            above = next((known for known in reversed(line(each)) if known in names), "")
            self._below.setdefault(above, []).append(each)

    def below(self, name: str = "") -> Sequence[T]:
        """What stands right below the thing of that name; without one, what stands at the top."""
        return self._below.get(name, ())

    def draw(self, name: str = "", *, top: bool = True) -> Iterator[tuple[str, T]]:
        """Each behind the lines that lead to it. Without `top` those at the top have none."""
        here = self.below(name)
        for each in here:
            is_last = each is here[-1]
            yield ("└─ " if is_last else "├─ ") if top else "", each
            for branch, below in self.draw(self._name(each)):
                yield (("   " if is_last else "│  ") if top else "") + branch, below
