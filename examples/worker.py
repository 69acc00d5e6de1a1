"""A web server that answers each request from a machine of its own: the machine ends with the answer.

A worker is warm in the template. What a request does to it, or learns from it, is gone when the next one comes.

python examples/worker.py [REQUESTS]. The template stays for the next run: vmfork template rm examples
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import vmfork

if TYPE_CHECKING:
    from collections.abc import Iterator

# An interpreter that every fork finds warm.
RECIPE = vmfork.Recipe(warm_up=("#!python\nimport json, random, unittest",))
# It keeps what it was asked. On a worker that stays, the next one could read it.
WORK = """
seen = globals().setdefault("seen", [])
seen.append(open("request").read())
print(json.dumps({"seen": seen, "by": open("/run/vmfork/fork-id").read().strip()}))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Forks a worker for each request."""

    template: vmfork.Template

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        with self.template.fork(files={"/root/request": asked}) as vm:
            done = vm.run_code(WORK, timeout_s=60)
        body = done.stdout.encode()
        self.send_response(500 if done.error else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is told."""


@contextmanager
def serving(template: vmfork.Template) -> Iterator[str]:
    """The address of the server, until the block ends."""
    handler = type("Serving", (Handler,), {"template": template})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def main(count: int) -> int:
    template = vmfork.Template.ensure("examples", recipe=RECIPE)

    def ask(number: int) -> dict[str, object]:
        with urllib.request.urlopen(address, data=b"%d" % number, timeout=120) as answer:
            return dict(json.loads(answer.read()))

    with serving(template) as address, ThreadPoolExecutor(count) as callers:
        answers = list(callers.map(ask, range(count)))
    workers = {answer["by"] for answer in answers}
    right = [answer["seen"] for answer in answers] == [[str(number)] for number in range(count)]
    print(f"{count} requests, answered by {len(workers)} machines; {'each' if right else 'NOT each'} saw its own alone")
    return 0 if right and len(workers) == count else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
