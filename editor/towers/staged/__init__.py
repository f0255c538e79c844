"""Transformers in stages: Swin, MaxViT and CoAtNet."""
