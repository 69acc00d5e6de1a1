"""How long calls of a machine may take where their caller does not say, in seconds: here and over a cluster alike.

Apart from the calls, because their signatures name these: the blocking form has them without what the calls need.
"""

from __future__ import annotations

FORK_LIMIT_S = 30.0
HOOK_LIMIT_S = 30.0
RESUME_LIMIT_S = 60.0
FILE_LIMIT_S = 60.0
