"""The network: from a genotype and weights to a module, and back to files."""
