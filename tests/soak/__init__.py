"""Many machines: at once, one after the other for a long time, and of one name that several processes fight over."""
