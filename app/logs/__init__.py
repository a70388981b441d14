"""The API over the inference log."""
