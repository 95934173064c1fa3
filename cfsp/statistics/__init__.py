"""Statistics: what calibration measures."""
