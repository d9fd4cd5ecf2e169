"""The journal: shared memory from which another worker can take a connection over."""
