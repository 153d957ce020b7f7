"""What attempts run on, and what starts and stops them."""
