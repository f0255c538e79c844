"""Other methods of taking a concept away, each a few lines over the same components, to stand beside an edit."""
