"""The shared memory that makes a worker replaceable."""
