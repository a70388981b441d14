"""Workspaces, their members, and the one place that decides who sees what."""
