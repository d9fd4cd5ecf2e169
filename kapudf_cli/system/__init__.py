"""What the operating system gives and takes: sockets, signals, limits, logs."""
