"""Concepts: texts, the directions that they span, and what heads hold of them."""
