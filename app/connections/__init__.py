"""Data connections, their details encrypted at rest."""
