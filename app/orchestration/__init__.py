"""Bundles, tasks and runs."""
