"""Drift detection over the inference log."""
