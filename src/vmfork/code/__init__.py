"""Code in one call: interpreters in a guest that keep their state, and what is said with their server there."""
