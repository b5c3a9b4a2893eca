"""Pipelines: what a user calls, one file per pipeline."""
