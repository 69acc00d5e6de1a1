"""A quick look at what forking costs here, beside the same by hand. The whole suite is in benchmarks/suite."""
