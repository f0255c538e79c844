"""Models: names, folders and checkpoints to a module with its tower, preprocessing and tokenizer."""
