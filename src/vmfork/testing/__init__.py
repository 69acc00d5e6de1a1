"""Machines for tests: a plugin of pytest, which finds it by its entry point. Nothing is loaded until a test asks."""
