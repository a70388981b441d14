"""The Hasura dialect, generated from the tables."""
