"""Targets: one file for each consumer, with everything that is particular to it."""
