"""How a machine becomes unique: an identity that its guest confirms. Knows the agent, not the machine."""
