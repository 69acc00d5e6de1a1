"""Targets for fuzzers, and what those found: `make fuzz`."""
