"""Vision transformers of one resolution: those of open_clip and timm, and open_clip's text tower."""
