"""Compensation: what a consumer is told about the units that it no longer reads."""
