"""A worker process: it loads the handler and serves connections."""
