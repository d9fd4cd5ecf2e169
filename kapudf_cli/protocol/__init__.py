"""The protocol without I/O: bytes to frames to messages, and what may follow what.

Nothing in this package knows a socket, a thread, a clock or a log. It imports
`kapudf_cli.errors` and protobuf, and nothing else of the project.
"""
