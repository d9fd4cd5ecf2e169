"""A conformance run: whether a UDF, in any language, keeps to the protocol.

Each check states the rule that it tests and the rule's source. Results are data, which
`kapudf check` shows.
"""
