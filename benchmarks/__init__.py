"""Benchmarks: kapudf beside two yardsticks of its own, and any other UDF, in one run."""
