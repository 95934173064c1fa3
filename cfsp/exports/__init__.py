"""Exports: saved models in the forms that serving engines load."""
