"""What `bin/bench` measures."""
