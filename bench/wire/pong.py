"""Returns what it receives over TCP, one connection after the other: python pong.py PORT. Its client: `tcp.Tcp.round_trips`."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    with socket.create_server(("", int(sys.argv[1]))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while message := connection.recv(4096):
                    connection.sendall(message)


if __name__ == "__main__":
    main()
