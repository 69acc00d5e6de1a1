"""Where calls come in: what they give is checked by name, and what goes wrong leaves as an error of vmfork's own."""

from vmfork.border.calls import guarded
from vmfork.border.failures import translated, translating

__all__ = ["guarded", "translated", "translating"]
