"""update-alternatives, read from maintainer scripts instead of run."""

from __future__ import annotations

import io

from vmfork.image.alternatives import Alternative, find_alternatives, link_alternatives
from vmfork.image.tree import Tree

GAWK = r"""
update-alternatives --quiet --install /usr/bin/awk awk /usr/bin/gawk 10 \
  --slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/gawk.1.gz \
  --slave /usr/bin/nawk nawk /usr/bin/gawk
for badlink in /usr/man/man1/awk.1; do true; done
"""
MAWK = "update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5\n"


def make_tree(*paths: str) -> Tree:
    tree = Tree(io.BytesIO())
    for path in paths:
        tree.add_file(path, b"x")
    return tree


def test_a_call_over_several_lines():
    assert find_alternatives(GAWK) == [
        Alternative("/usr/bin/awk", "/usr/bin/gawk", 10),
        Alternative("/usr/share/man/man1/awk.1.gz", "/usr/share/man/man1/gawk.1.gz", 10),
        Alternative("/usr/bin/nawk", "/usr/bin/gawk", 10),
    ]


def test_what_the_script_computes_is_left_out():
    assert find_alternatives("update-alternatives --install /usr/bin/$x x /usr/bin/y 1\n") == []


def test_the_highest_priority_wins_and_absent_ones_do_not_count():
    tree = make_tree("usr/bin/gawk", "usr/bin/mawk")
    link_alternatives(tree, [MAWK, GAWK])
    assert tree.read("usr/bin/awk") == b"/usr/bin/gawk"
    assert tree.read("usr/bin/nawk") == b"/usr/bin/gawk"
    assert "usr/share/man/man1/awk.1.gz" not in tree
    only = make_tree("usr/bin/mawk")
    link_alternatives(only, [MAWK, GAWK])
    assert only.read("usr/bin/awk") == b"/usr/bin/mawk"


def test_what_a_package_brought_stays():
    tree = make_tree("usr/bin/awk", "usr/bin/gawk")
    link_alternatives(tree, [GAWK])
    assert tree.read("usr/bin/awk") == b"x"


def test_a_link_below_a_linked_folder_lands_behind_it():
    tree = make_tree("usr/bin/more")
    tree.add_link("bin", "usr/bin")
    link_alternatives(tree, ["update-alternatives --install /bin/pager pager /bin/more 50\n"])
    assert tree.resolve("usr/bin/pager") == "usr/bin/more"
