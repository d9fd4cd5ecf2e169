"""The handlers that come with kapudf, each written as a plugin's author would write it."""
