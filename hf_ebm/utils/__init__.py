"""Utilities without machine learning: argument checks, files, devices."""
