"""A database in one fork, the test suite that needs it in another, which connects to `db:5432` and to nothing else.

The database is a small one of this example's own, so that the default image will do.
"""

from __future__ import annotations

import os
import sys

import vmfork

PORT = 5432
# Text lines: `set KEY VALUE`, `get KEY`.
DATABASE = f"""
import socketserver
kept = {{}}
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            verb, key, *value = line.decode().split()
            if verb == "set":
                kept[key] = value[0]
            self.wfile.write((kept.get(key, "-") + "\\n").encode())
socketserver.ThreadingTCPServer(("127.0.0.1", {PORT}), Handler).serve_forever()
"""
SUITE = f"""
import socket, unittest
class Suite(unittest.TestCase):
    def setUp(self):
        self.database = socket.create_connection(("db", {PORT})).makefile("rwb", buffering=0)
        self.addCleanup(self.database.close)
    def ask(self, text):
        self.database.write(text.encode() + b"\\n")
        return self.database.readline().decode().strip()
    def test_1_what_was_set_is_there(self):
        self.assertEqual(self.ask("set colour blue"), "blue")
    def test_2_another_connection_finds_it(self):
        self.assertEqual(self.ask("get colour"), "blue")
    def test_3_what_was_not_set_is_not(self):
        self.assertEqual(self.ask("get size"), "-")
unittest.main()
"""


def run_suite(template: vmfork.Template) -> vmfork.ExecResult:
    network = vmfork.Network("job")
    with template.fork() as db, template.fork() as suite:
        for vm in (db, suite):
            vm.join(network)
        db.write_file("/root/database.py", DATABASE)
        suite.write_file("/root/suite.py", SUITE)
        with db.start(["python3", "/root/database.py"]):
            db.wait_for_port(PORT)
            db.expose(PORT, "db")
            return suite.exec(["python3", "/root/suite.py"], timeout_s=60)


def main() -> int:
    template = vmfork.Template.build(f"database-{os.getpid()}")
    try:
        result = run_suite(template)
    finally:
        template.remove()
    print(result.stderr.strip().splitlines()[-1])
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
