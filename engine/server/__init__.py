"""The engine's own HTTP server: a protocol on uvloop and httptools, and the fast paths of inference."""
