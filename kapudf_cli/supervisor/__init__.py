"""The supervisor: functions, their workers and connections, in one loop."""
