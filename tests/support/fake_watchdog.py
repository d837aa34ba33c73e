"""Instead of our watchdog: answers by the path, and mostly not as HTTP wants it. `--curve` prints nothing."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

ANSWERS: dict[str, list[bytes | float]] = {
    "/garbage": [b"\x00\xffI am no HTTP\r\n\r\n"],
    "/nothing": [],
    "/half-head": [b"HTTP/1.1 200 OK\r\ncontent-le"],
    "/half-body": [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf"],
    "/half-chunks": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"5\r\nno"],
    "/bad-chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"zzz\r\n"],
    "/bad-first-chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzzz\r\n"],
    "/hang": [60],
    "/half-hang": [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf", 60],
}
CONTROL = ["/metrics", "/_/config"]
UNKNOWN: list[bytes | float] = [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]
FINE: list[bytes | float] = [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine"]


def serve(connection: socket.socket) -> None:
    """Answer one request in steps: bytes are sent, a number is waited so many seconds for the provider to leave."""
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        path = head.split()[1].decode()
        for step in UNKNOWN if path in CONTROL else ANSWERS.get(path, FINE):
            if isinstance(step, bytes):
                connection.sendall(step)
                time.sleep(0.02)  # the pieces shall come one by one
            else:
                connection.settimeout(step)
                connection.recv(1)  # until the provider leaves


def listen(descriptor: int) -> None:
    """Serve for ever."""
    listener = socket.socket(fileno=descriptor)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def main() -> None:
    """Serve both ports; who asks for execution times is told nothing."""
    if "--curve" in sys.argv:
        return
    requests, control = map(int, os.environ["listen_fds"].split(","))  # noqa: SIM112 - as our watchdog has it
    threading.Thread(target=listen, args=(control,), daemon=True).start()
    listen(requests)


if __name__ == "__main__":
    main()
