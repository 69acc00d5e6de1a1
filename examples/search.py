"""A search that forks a running machine at each decision, and goes on with the best.

What is decided upon is in the memory of a program that runs in the machine: nothing of it is saved, sent or run again.

python examples/search.py [WEIGHTS]
"""

from __future__ import annotations

import os
import sys
import time

import vmfork

PORT, BINS, KEPT = 7000, 3, 2
WEIGHTS = [83, 61, 59, 47, 41, 37, 29, 23, 19, 11]
# It holds what was put where. `put B` puts the next weight into bin B, and tells how uneven they are; `show` tells all.
PROGRAM = f"""
import socketserver, sys
bins, weights = [[] for _ in range({BINS})], [int(each) for each in sys.argv[1:]]
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        verb, *which = self.rfile.readline().split()
        if verb == b"put":
            bins[int(which[0])].append(weights.pop(0))
            sums = [sum(each) for each in bins]
            said = max(sums) - min(sums)
        else:
            said = bins
        self.wfile.write(str(said).encode())
socketserver.TCPServer(("127.0.0.1", {PORT}), Handler).serve_forever()
"""


def ask(vm: vmfork.VM, text: str) -> str:
    with vm.open_connection(PORT) as connection:
        connection.write(f"{text}\n".encode())
        connection.write_eof()
        return connection.read().decode()


def begin(template: vmfork.Template, weights: list[int]) -> vmfork.VM:
    """A machine in which the program runs, and has decided nothing yet."""
    vm = template.fork()
    vm.write_file("/root/bins.py", PROGRAM)
    # In a session of its own: a fork has what its parent runs, but not the programs that belong to a connection.
    vm.shell(f"setsid python3 /root/bins.py {' '.join(map(str, weights))} >/dev/null 2>&1 &", check=True)
    vm.wait_for_port(PORT)
    return vm


def decide(vms: list[vmfork.VM]) -> tuple[list[vmfork.VM], int]:
    """Each machine forked into one for each bin. The best live on; their parents and the others are gone."""
    forks = [fork for vm in vms for fork in vm.fork(BINS)]
    uneven = [int(ask(fork, f"put {number % BINS}")) for number, fork in enumerate(forks)]
    ranked = sorted(range(len(forks)), key=lambda number: uneven[number])
    best, others = ranked[:KEPT], ranked[KEPT:]
    for vm in (*vms, *(forks[number] for number in others)):
        vm.close()
    return [forks[number] for number in best], uneven[best[0]]


def main(count: int) -> None:
    weights, begun = WEIGHTS[:count], time.perf_counter()
    template, vms = vmfork.Template.build(f"search-{os.getpid()}"), []
    try:
        vms = [begin(template, weights)]
        for weight in weights:
            vms, uneven = decide(vms)
            print(f"{weight} is in a bin; the best of {len(vms)} machines differs by {uneven}")
        print(f"found in {time.perf_counter() - begun:.1f} s: {ask(vms[0], 'show')}")
    finally:
        for vm in vms:
            vm.close()
        template.remove()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(WEIGHTS))
