"""Whether the host has room for one more machine: what it has, what was promised, what the machine may take."""
