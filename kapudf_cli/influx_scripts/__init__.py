"""Scripts written for InfluxData's Python agent: their interface, and how kapudf runs them.

Such a script imports `Agent`, `Handler` and perhaps `Server` from `kapacitor.udf.agent`. If it is
run by itself, these are the classes of `kapudf_cli.influx_process`; in a process of kapudf, those
of `runs.py`.
"""
