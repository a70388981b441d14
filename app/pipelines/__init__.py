"""Pipeline definitions, their immutable versions, tags and comments."""
