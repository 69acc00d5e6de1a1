"""Images as something that can be sent: what it looks like, out of their store and into one."""
