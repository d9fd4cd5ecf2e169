"""Drives a UDF with data, and measures: how much, how late, and what it costs.

`engine` is what `kapudf load` runs; `exchange` what the benchmark suite measures by.
"""
