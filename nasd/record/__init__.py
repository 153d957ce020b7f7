"""What is on the disk: the database, its types and its folders. Only its store writes."""
