"""Criteria: one score per unit; higher means keep. One idea per file."""
