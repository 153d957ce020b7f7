"""What is trained for, a file a task, and its data."""
