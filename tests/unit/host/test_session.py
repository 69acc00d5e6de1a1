"""A session ends as a whole, with what no longer has anything to do with its leader."""

from __future__ import annotations

import subprocess

from vmfork.host.session import find_members, kill_session

# Job control gives the first sleep a process group of its own; none of them holds the pipe.
SCRIPT = """
set -m; sleep 1000 >/dev/null & set +m
(sleep 1000 & sleep 1000) >/dev/null &
echo ready; wait
"""


async def test_every_process_of_the_session_has_ended():
    with subprocess.Popen(["bash", "-c", SCRIPT], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout.readline() == b"ready\n"
        assert len(find_members(leader.pid)) >= 3
        await kill_session(leader.pid)
        assert find_members(leader.pid) == []
