"""Verification: what was written, run by its consumer in a fresh process against the model's own answers."""
