"""What leads into a machine and out of it. Nothing does by itself: there is no network card."""
