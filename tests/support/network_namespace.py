"""A network of one's own (Linux): for servers whose ports and addresses cannot be chosen."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts meanwhile, has a network with nothing but its own loopback.

    Raises:
        OSError: this user may not (it takes CAP_SYS_ADMIN), or this system has no network namespaces.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # `os.unshare` and `os.setns` came with Python 3.12
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        _checked(libc.unshare(_CLONE_NEWNET))
        try:
            _raise_loopback()
            yield
        finally:
            _checked(libc.setns(before.fileno(), _CLONE_NEWNET))


def _raise_loopback() -> None:
    """A new network's loopback exists but is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
