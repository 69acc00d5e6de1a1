"""What all nodes of a cluster count, for Prometheus."""
