"""From images to an edited model: one module per stage of the path."""
