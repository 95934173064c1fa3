"""Tasks: what a model is trained and judged for, one a file."""
