"""Schedules: when statistics are taken and decisions made, and how often."""
