"""Schedules: when and how often to measure statistics and decide what to remove."""
