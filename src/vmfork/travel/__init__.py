"""Templates as something that can be sent: what it looks like, whom it fits, out of a store and into one."""
