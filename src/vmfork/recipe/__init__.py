"""How a machine is made into what the work needs, step by step: what a step is, what it reads, and how it is done."""
