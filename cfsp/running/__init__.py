"""Running: from a config to a record."""
