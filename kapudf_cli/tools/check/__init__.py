"""`kapudf check`: whether a UDF, in any language, follows the protocol.

Each check states the rule that it tests, and the rule's source.
"""
