"""What a command prints of one thing, where that is more than a table."""
