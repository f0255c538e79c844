"""Selection: which heads a recipe edits."""
