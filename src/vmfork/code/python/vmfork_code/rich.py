"""What objects look like to people: the forms that notebooks ask them for."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_TEXT = 1_000_000
_FORMS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
}
# These have no other, and looking for it takes as long as a call.
PLAIN = (int, str, float, bool, bytes, list, tuple, dict, set)


def cut(text: str, most: int = MOST_TEXT) -> str:
    """The text as UTF-8 can carry it, and no more than `most` characters of it."""
    text = text if len(text) <= most else f"{text[:most]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def describe(value: object) -> dict[str, Any]:
    """By media type: `text/plain` is its `repr`, and what else it has. Bytes are base64. Raises what `repr` raises."""
    shown: dict[str, Any] = {"text/plain": cut(repr(value))}
    if type(value) in PLAIN or isinstance(value, type):
        return shown  # a type's forms are those of its instances
    for name, media_type in _FORMS.items():
        _add(shown, media_type, _ask(value, name))
    bundle = _ask(value, "_repr_mimebundle_", include=None, exclude=None)
    bundle = bundle[0] if isinstance(bundle, tuple) and bundle else bundle
    if isinstance(bundle, dict):
        for media_type, content in bundle.items():
            _add(shown, str(media_type), content)
    return shown


def take_figures(show: Callable[[dict[str, Any]], None]) -> None:
    """Figures that code has drawn by pyplot are shown and closed."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot is not None else ():
        figure, drawn = pyplot.figure(number), io.BytesIO()
        figure.savefig(drawn, format="png", bbox_inches="tight")
        pyplot.close(figure)
        show({"text/plain": repr(figure), "image/png": base64.b64encode(drawn.getvalue()).decode()})


def _ask(value: object, name: str, **options: object) -> Any:
    try:
        method = getattr(value, name, None)
        return method(**options) if callable(method) else None
    except Exception:
        return None  # it has no such form now


def _add(shown: dict[str, Any], media_type: str, content: Any) -> None:
    content = content[0] if isinstance(content, tuple) and content else content
    if isinstance(content, (bytes, bytearray)):
        shown[media_type] = base64.b64encode(content).decode()
    elif isinstance(content, str):
        shown[media_type] = content.encode("utf-8", "backslashreplace").decode()
    elif media_type == "application/json" and content is not None and _is_json(content):
        shown[media_type] = content


def _is_json(content: object) -> bool:
    try:
        json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
