"""The built-in handlers, which use only the public interface."""
