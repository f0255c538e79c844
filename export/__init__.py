"""One writer per target, and verification of what was written."""
