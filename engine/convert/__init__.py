"""Inspection and conversion of models, in processes with limits."""
