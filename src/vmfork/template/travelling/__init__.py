"""Templates out of their store and into one: to a file, a registry, the disk, and back."""
