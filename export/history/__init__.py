"""What was done to an edited folder, and how it is undone."""
