"""The operating system: one owned thing, or one kind of fact, per module. Knows nothing of virtual machines."""
