"""Measurements: the product against its peers, and against what the machine could do."""
