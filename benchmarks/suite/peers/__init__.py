"""Who else is measured: how each is installed and driven. None of it is in the wheel."""
