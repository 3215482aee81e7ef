"""Downloads that fail in seconds instead of hanging where the network swallows packets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 30.0


@contextmanager
def network_timeout(seconds: float = SECONDS) -> Iterator[None]:
    """Bound every socket opened inside: torchvision's downloader sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
