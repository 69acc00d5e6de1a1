"""The host's side of the agent: requests over one connected socket, with deadlines."""
