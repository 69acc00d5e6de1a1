"""What vmfork costs: the suite that measures it, and the committed run that README and docs are written from."""
