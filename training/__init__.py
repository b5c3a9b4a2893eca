"""Training: one script per method, its configs, and what the scripts share."""
