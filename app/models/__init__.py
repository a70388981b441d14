"""Uploads, versions, configurations, inspection and conversion."""
