"""The gateway from the API's own URL to the engines."""
