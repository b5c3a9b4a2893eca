"""OOD scores: statistics of samples, scores, calibration, and input preparation."""
