"""Hugging Face folders: names, configuration, preprocessing and weights, as transformers reads them."""
