"""Tasks: what a model is trained for and measured on. One task per file."""
