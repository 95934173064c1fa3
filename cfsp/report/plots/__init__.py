"""Figures of records, for pages and papers."""
