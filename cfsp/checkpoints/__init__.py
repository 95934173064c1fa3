"""Checkpoints: pruned models as Hugging Face folders."""
