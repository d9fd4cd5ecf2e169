"""The protocol without I/O: framing, messages, and the order in which they may come.

This package has no sockets, threads, clock or log. It imports `kapudf_cli.errors` and
protobuf, and nothing else of the project.
"""
