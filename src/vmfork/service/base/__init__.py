"""What any server needs: a socket that is its own, who may connect, health of the supervisor, metrics."""
