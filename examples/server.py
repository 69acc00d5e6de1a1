"""A web server that is warm when its template is frozen answers from twenty forks at once, each by a port of its own.

python examples/server.py [FORKS]
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import vmfork

TEMPLATE = f"server-{os.getpid()}"
PORT = 8000
# It says whose it is: the id that its fork was given long after it had begun.
SERVER = f"""
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = pathlib.Path("/run/vmfork/fork-id").read_bytes().strip() if self.path == "/id" else b"warm"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", {PORT}), Handler).serve_forever()
"""
START = f"cat > /root/server.py <<'END'\n{SERVER}END\nsetsid python3 /root/server.py >/dev/null 2>&1 &"
READY = f"python3 -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/')\""


def fetch(port: vmfork.Forward) -> str:
    with urllib.request.urlopen(f"http://{port.address}/id", timeout=60) as answer:
        return str(answer.read().decode())


def main(count: int) -> None:
    begun = time.perf_counter()
    template = vmfork.Template.build(TEMPLATE, warm_up=[START], ready=READY)
    print(f"a template with a warm server: {time.perf_counter() - begun:.1f} s")
    try:
        with ExitStack() as stack, ThreadPoolExecutor(count) as callers:
            begun = time.perf_counter()
            forks = [stack.enter_context(vm) for vm in template.fork_many(count)]
            ports = [stack.enter_context(vm.forward(PORT)) for vm in forks]
            answers = list(callers.map(fetch, ports))
            took_s = time.perf_counter() - begun
        if answers != [vm.id for vm in forks]:
            sys.exit(f"somebody else answered: {answers}")
        print(f"{count} forks of it, each of which has answered with its own id: {took_s:.1f} s")
    finally:
        template.remove()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
