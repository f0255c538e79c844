"""What a command prints or draws of one thing, where that is more than a table."""
