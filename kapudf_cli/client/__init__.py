"""Kapacitor's side of a connection, and the kinds of UDFs that it connects to.

Replay, check and load use a `Target` of any kind, and talk to it through a `Session`.
"""
