"""What makes a machine one of its own: an identity that its guest confirms. Knows the agent, not the machine."""
