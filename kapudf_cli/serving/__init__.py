"""Sockets, signals and threads: what turns agents into a service."""
