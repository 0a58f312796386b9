"""What the service keeps: a folder for one process at a time, a database, and files by their content."""
