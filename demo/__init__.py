"""The embedded world: a renderer, a small CLIP trained on it, and the script that trained it."""
