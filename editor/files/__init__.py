"""Files: read within bounds, written under a temporary name first, and where they lie."""
