"""The agent protocol of `docs/reference/wire.md` without input or output: bytes to values and back."""
