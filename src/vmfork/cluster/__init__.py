"""Many hosts, one factory: where a machine is placed, what a node does, and the engine between them."""
