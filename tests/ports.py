"""Ports for servers of tests. Several processes run tests at once, so each takes what the system gives it."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of the loopback address that nobody uses now and that the system gives to no one else soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
