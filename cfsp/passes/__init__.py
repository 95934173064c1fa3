"""Passes: run tokens through a model, whole (`forward`) or one block at a time (`walk`)."""
