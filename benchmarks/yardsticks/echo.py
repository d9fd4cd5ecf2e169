"""A raw echo, the upper limit: sends every byte back without parsing it.

python echo.py PATH
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(connection: socket.socket) -> None:
    """Echo one connection until it ends."""
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def main(path: str) -> None:
    """Serve each connection in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
