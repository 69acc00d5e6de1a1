"""What hypothesis makes up is the same in each run of the suite, and may take as long as a busy host needs.

Others, and more: `pytest --hypothesis-profile others`. Fewer, for another host where all were tried on this one: `few`.
A test host has no hypothesis, and no test that needs it.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("few", settings.get_profile("same"), max_examples=20)
    settings.register_profile("others", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=1000)
    # The one that is asked for on the command line is loaded later, by hypothesis itself.
    settings.load_profile("same")
