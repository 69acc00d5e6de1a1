"""The VM cache server: a pool of ready machines behind a Unix socket, with health, status and metrics."""
