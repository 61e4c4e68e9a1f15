"""The network: modules and weights, nothing else."""
