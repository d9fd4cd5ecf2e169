"""The operating system: socket files, signals, processes, systemd and logging."""
