"""Evaluation: measurements of a model, each stored with its protocol."""
