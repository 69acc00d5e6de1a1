"""One file for each measurement; every module here with a `MEASURE` is part of the suite (vmfork.bench.registry)."""
