"""The method: what is better, how genotypes vary, who goes on. Pure, and knows no search that
runs."""
