"""Where tasks run: processes of this machine, or Jobs of a cluster."""
