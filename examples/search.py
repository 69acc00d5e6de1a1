"""A search that forks a running machine at each decision, and goes on with the best.

What is decided upon is in the memory of a program that runs in the machine: nothing of it is saved, sent or run again.
With --inside that program forks its machine itself: the host only allows it, and waits.

python examples/search.py [--inside] [WEIGHTS]
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


# It makes one machine of itself for each bin. Each puts the next weight there and the others wherever is least, and
# says how uneven they are then; the first goes on with the best bin.
INSIDE = f"""
import sys
import vmfork_guest

def put(number, weight):
    bins[number].append(weight)

def uneven():
    sums = [sum(each) for each in bins]
    return max(sums) - min(sums)

bins, weights = [[] for _ in range({BINS})], [int(each) for each in sys.argv[1:]]
while weights:
    weight = weights.pop(0)
    index = vmfork_guest.fork({BINS})
    if index:
        put(index - 1, weight)
        for rest in weights:
            put(min(range({BINS}), key=lambda number: sum(bins[number])), rest)
        vmfork_guest.exit(message=str(uneven()))
    ended = [vmfork_guest.wait() for _ in bins]
    best = min(ended, key=lambda each: (int(each.message), each.index))
    put(best.index - 1, weight)
    print(weight, "is in a bin; at best they will differ by", best.message, flush=True)
print(bins)
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


def search_inside(template: vmfork.Template, weights: list[int]) -> None:
    with template.fork(allow_guest_fork=BINS) as vm:
        vm.write_file("/root/search.py", INSIDE)
        print(vm.exec(["python3", "/root/search.py", *map(str, weights)], check=True).stdout, end="")


def main(count: int, *, inside: bool) -> None:
    weights, begun = WEIGHTS[:count], time.perf_counter()
    template, vms = vmfork.Template.build(f"search-{os.getpid()}"), []
    try:
        if inside:
            search_inside(template, weights)
            print(f"found in {time.perf_counter() - begun:.1f} s")
            return
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
    numbers = [int(each) for each in sys.argv[1:] if each.isdigit()]
    main(numbers[0] if numbers else len(WEIGHTS), inside="--inside" in sys.argv)
