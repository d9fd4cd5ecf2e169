"""Does a UDF hold to the protocol? A conformance run over any UDF, in any language.

One file a family of checks; each check states the rule that it tests and the rule's
source. Results are data; `kapudf check` shows them.
"""
