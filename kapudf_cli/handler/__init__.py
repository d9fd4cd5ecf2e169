"""The interface for authors of handlers; `kapudf_cli` exports its public names."""
