"""One file for each measurement: every module here has a `MEASURE`, and benchmarks.suite.registry finds it."""
