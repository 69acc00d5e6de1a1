"""What is code, and what is refused before a machine is asked."""

from __future__ import annotations

import pytest

from vmfork.code.source import Code, find_code
from vmfork.errors import ConfigError


def test_code_stands_below_the_name_of_its_language() -> None:
    assert find_code("#!python\nimport json\n") == Code(source="import json\n")
    assert find_code("#! bash \nX=1") == Code(source="X=1", language="bash")
    for script in ("#!/bin/sh\ntrue", "#!/usr/bin/env python3\n", "true", "", "# !python\n"):
        assert find_code(script) is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"source": "\udcff"}, "code"),
        ({"source": "x" * (17 << 20)}, "code"),
        ({"source": "", "context": "\udcff"}, "context"),
        ({"source": "", "language": "cobol"}, "language"),
        ({"source": "", "made_in": "relative"}, "made_in"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(given, field) -> None:
    with pytest.raises(ConfigError) as refused:
        Code(**given)
    assert refused.value.field == field
