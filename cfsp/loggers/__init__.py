"""Loggers: services and files that follow a run, besides its record."""
