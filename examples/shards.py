"""The tests of a suite in parallel, a part of them in each fork: what one test leaves behind, no other part meets.

python examples/shards.py [SHARDS]. The template stays for the next run: vmfork template rm examples
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import vmfork

# An interpreter that every fork finds warm.
RECIPE = vmfork.Recipe(warm_up=("#!python\nimport json, random, unittest",))
# Each test believes that the file is its own. On one machine, in parallel, they would meet.
SUITE = """
import pathlib, unittest
KEPT = pathlib.Path("/tmp/kept")
class Suite(unittest.TestCase):
    def setUp(self):
        self.assertFalse(KEPT.exists(), "another test is here")
        KEPT.write_text(self.id())
    def tearDown(self):
        KEPT.unlink()
    def test_it_is_kept(self): self.assertEqual(KEPT.read_text(), self.id())
    def test_it_grows(self): self.assertGreater(KEPT.stat().st_size, 0)
    def test_it_can_be_moved(self): KEPT.rename("/tmp/moved").rename(KEPT)
    def test_it_is_empty(self): self.assertEqual(KEPT.read_text(), "")
    def test_it_is_a_file(self): self.assertTrue(KEPT.is_file())
    def test_it_can_be_changed(self): self.assertEqual(KEPT.write_text("other"), 5)
"""
LIST = "import suite\nprint(json.dumps(unittest.defaultTestLoader.getTestCaseNames(suite.Suite)))"
RUN = """
import suite
result = unittest.TestResult()
unittest.TestSuite(map(suite.Suite, json.loads({names!r}))).run(result)
print(json.dumps([test.id() + ": " + text.splitlines()[-1] for test, text in result.failures + result.errors]))
"""


def ask(vm: vmfork.VM, code: str) -> list[str]:
    """What the code prints, which is JSON."""
    return list(json.loads(vm.run_code(code, timeout_s=300, check=True).stdout))


def run_shard(template: vmfork.Template, names: list[str]) -> list[str]:
    with template.fork(files={"/root/suite.py": SUITE}) as vm:
        return ask(vm, RUN.format(names=json.dumps(names)))


def main(count: int) -> int:
    template = vmfork.Template.ensure("examples", recipe=RECIPE)
    with template.fork(files={"/root/suite.py": SUITE}) as vm:
        names = ask(vm, LIST)
    shards = [names[first::count] for first in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as callers:
        failed = [told for part in callers.map(partial(run_shard, template), shards) for told in part]
    print(*failed, sep="\n")
    print(f"{len(names)} tests in {count} machines, {len(failed)} failed")
    return 0 if len(failed) == 1 and "test_it_is_empty" in failed[0] else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
