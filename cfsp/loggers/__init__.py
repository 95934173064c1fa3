"""Loggers: where a run is followed besides its record."""
