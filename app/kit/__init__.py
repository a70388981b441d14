"""Database, HTTP, storage, logging and clock: the parts without business words."""
