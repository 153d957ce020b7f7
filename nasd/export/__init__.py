"""Taking a model home, and asking it."""
