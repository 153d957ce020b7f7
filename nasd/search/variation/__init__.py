"""How one genotype comes from others."""
