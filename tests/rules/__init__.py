"""What holds for every test, as plugins of pytest: what it needs, how long it may take, what it may leave behind."""
