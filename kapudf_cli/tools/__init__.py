"""What the commands do: replay, check, load, and the files they read."""
