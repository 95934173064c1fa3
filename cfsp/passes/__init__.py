"""Passes: tokens through a model, whole or one block at a time."""
