"""Training: one loop, for whatever is trained."""
