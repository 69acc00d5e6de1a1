"""One virtual machine: a hypervisor's process, the agent in its guest, and the life of both."""
