"""What forking costs, measured side by side with the same thing done by hand, and with everyone else who does it."""
