"""Images and texts: where they are listed, how one is decoded, what is known of them, and how they come in batches."""
