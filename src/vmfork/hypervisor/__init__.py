"""Running machines on a hypervisor. Knows nothing of agents, images or templates."""
