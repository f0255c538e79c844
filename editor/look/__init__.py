"""Pictures: where heads look, what they find, and plots of figures."""
