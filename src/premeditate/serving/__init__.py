"""Servers: what this package does, for other machines. Needs the extra `serve`."""
