"""What `kapudf load` does: drive a UDF with data, and measure latency, throughput and cost."""
