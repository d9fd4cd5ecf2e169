"""The agent: one connection between Kapacitor and a handler, from bytes to calls and back."""
