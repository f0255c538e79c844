"""Edits: recipes, the maps that they stand for, and how they enter a model."""
