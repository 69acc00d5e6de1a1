"""From a running machine to what its forks are made from."""
