"""Figures of records, drawn once for pages and papers."""
