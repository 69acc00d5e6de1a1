"""Any JSON at all, for whatever reads it."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# Numbers that fit into no float, and floats that are no numbers, are JSON for Python.
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, -1, 0]),
    st.floats(),
    st.text(max_size=20),
)
values = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=9), inside, max_size=4)
)


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """Where something lies in `value`, from the outside in."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inside in items for found in ((*path, key), *paths_of(inside, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, record: bytes) -> bytes:
    """The record with something in it taken out, or changed to anything; or cut, or with bytes changed."""
    if draw(st.booleans()):
        at = draw(st.integers(0, len(record)))
        return record[:at] + draw(st.binary(max_size=4)) + record[at + draw(st.integers(0, 4)) :]
    found = copy.deepcopy(json.loads(record))
    *way, last = draw(st.sampled_from(paths_of(found)))
    inside = found
    for key in way:
        inside = inside[key]
    if draw(st.booleans()):
        del inside[last]
    else:
        inside[last] = draw(values)
    return json.dumps(found).encode()
