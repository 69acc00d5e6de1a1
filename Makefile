# Two commands do all the set-up, each from a bare checkout: make demo, make test.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-packages test-cluster test-debian13 test-ordinary test-kvm chaos soak check fuzz wheels bench bench-asked bench-check bench-docs clean

$(STAMP): pyproject.toml tools/setup tools/build.py $(wildcard guest/*.[ch] keeper/*.[ch] preload/*.[ch] broker/*.[ch] copier/*.[ch] fence/*.[ch])
	tools/setup $(VENV)
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	tools/test $(BIN)

# All tests on Debian 13's QEMU and Python, in a root file system of their own; `make test` has a short form of it.
test-debian13: $(STAMP)
	$(BIN)/python tools/hosts/debian13

# What the specification names, as an ordinary user; root needs none, and makes one for as long as it takes.
test-ordinary: $(STAMP)
	$(BIN)/python tools/hosts/ordinary

# All that is to work under KVM; where this host has none that works, in a machine that has, which is tried before.
test-kvm: $(STAMP)
	$(BIN)/pytest tests/hosts -q
	$(BIN)/python tools/hosts/kvm

# Three nodes on this host, of Ray and of a list, which are killed in turn; installs Ray, which is large.
test-cluster: $(STAMP)
	$(BIN)/python -m pip install --quiet 'ray>=2.49'
	$(BIN)/pytest tests/cluster tests/vm/test_servers.py -q

# Twenty popular packages, each in an image of its own, does its first real act in a fork, and an editor is used at a
# terminal: about half an hour under TCG.
test-packages: $(STAMP)
	$(BIN)/pytest tests/packages -q

# Several hundred operations in which somebody is killed, stopped or refused. Other runs: make chaos CHAOS="--count 50".
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos $(CHAOS)

# 50 forks at once, 1,000 in a row, 100 with a disk, 200 MB each way through a port, and 5 minutes of processes that race for one name.
soak: $(STAMP)
	$(BIN)/python -m tests.soak $(SOAK)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit -q

# What strangers speak to, ten minutes each; says what it needs where that is missing. `make test` replays what was found.
fuzz: $(STAMP)
	$(BIN)/python tools/fuzz.py

# For hosts of x86_64 and aarch64, into dist/. The first one for another kind of host takes a minute: zig compiles musl.
wheels: $(STAMP)
	$(BIN)/python tools/wheels.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.suite --peers install --json benchmarks/last.json

# What a whole run has no time for: networks, ports, copies, recipes, the server; Ray, an image with NumPy, large disks.
bench-asked: $(STAMP)
	$(BIN)/python -m pip install --quiet 'ray>=2.49'
	$(BIN)/python -m benchmarks.suite --asked --json benchmarks/last-asked.json

# After `make bench`: fails where a ratio is worse than in the committed run, beyond noise.
bench-check: $(STAMP)
	$(BIN)/python -m benchmarks.suite --from benchmarks/last.json --check benchmarks/baseline.json

# From the committed runs: after `mv benchmarks/last.json benchmarks/baseline.json`, or the same of those -asked.json.
bench-docs: $(STAMP)
	for run in benchmarks/baseline*.json; do \
	    $(BIN)/python -m benchmarks.suite --from $$run --plots docs/performance --report . || exit; \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
