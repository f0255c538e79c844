"""Shipped YAML: concepts, a pool of descriptions for TextSpan, and recipes."""
