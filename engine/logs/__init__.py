"""The log store: append-only Arrow records per topic and partition, kept in files."""
