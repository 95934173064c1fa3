"""The data: texts, their token ids, calibration windows, training examples."""
