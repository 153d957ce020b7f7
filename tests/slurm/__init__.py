"""A real Slurm on loopback, and searches that run on it."""
