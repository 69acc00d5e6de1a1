"""Servers: what any of them needs in `base`, each in a folder of its own."""
