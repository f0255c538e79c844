"""The Hugging Face hub: whether it can be reached, and its repositories as folders."""
