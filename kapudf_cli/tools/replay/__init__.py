"""What `kapudf replay` does: send a recording through a UDF, and show the output."""
