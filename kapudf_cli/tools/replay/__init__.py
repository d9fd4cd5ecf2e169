"""A recording sent through a UDF as a task would, and what comes back."""
