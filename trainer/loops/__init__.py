"""Training stories read from top to bottom."""
