"""The agent (`agent.py`) and the messages (`udf_pb2.py`)."""
