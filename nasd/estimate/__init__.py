"""What things will cost: operations, hours, losses."""
