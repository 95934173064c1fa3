"""Evaluation: what a model can still do, with the protocol beside every number."""
