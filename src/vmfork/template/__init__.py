"""Templates: what joins machines and the store. Build, publish, fork, audit."""
