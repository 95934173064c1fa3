"""Compensation: corrections of a consumer for the units that it no longer reads."""
