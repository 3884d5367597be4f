"""Writing the language model for other engines."""
