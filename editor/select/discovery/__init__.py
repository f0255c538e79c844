"""Concepts that nobody wrote down, from heads that no known concept explains."""
