"""What a model takes on a device: time, memory, energy. Measured, and told how sure that is."""
