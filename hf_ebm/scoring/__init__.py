"""Scores, metrics and everything that measures a trained model."""
