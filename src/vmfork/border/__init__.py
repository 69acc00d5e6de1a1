"""Where calls come in: what they give is checked by name, and what goes wrong leaves as an error of vmfork's own."""

from vmfork.border.calls import guarded
from vmfork.border.failures import CallbackError, find_hint, translated, translating

__all__ = ["CallbackError", "find_hint", "guarded", "translated", "translating"]
