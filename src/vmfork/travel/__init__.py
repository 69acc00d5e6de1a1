"""Templates and images as something that can be sent: what it looks like, whom it fits, and out of a store."""
