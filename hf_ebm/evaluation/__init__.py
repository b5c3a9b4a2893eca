"""Evaluation on whole data sets: samples, OOD scores, bulk scoring."""
