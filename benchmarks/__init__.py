"""Benchmarks of kapudf, two yardsticks, and any other mirror UDF, in one run."""
