"""What people see of a search. Views read, and never write."""
