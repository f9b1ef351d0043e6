"""Choosing ports on the loopback address."""

from __future__ import annotations

import socket
from collections.abc import Mapping

LOOPBACK = "127.0.0.1"


def choose_ports(preferred: Mapping[str, int]) -> dict[str, int]:
    """A port for each name: the preferred one where nobody listens there, any free one elsewhere; all different."""
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name, port in preferred.items():
            holder = _hold(port) or _hold(0)
            if holder is None:
                raise OSError(f"no free port on {LOOPBACK}")
            held.append(holder)
            chosen[name] = int(holder.getsockname()[1])
    finally:
        for holder in held:
            holder.close()
    return chosen


def is_free(port: int) -> bool:
    """Whether nobody listens on the port."""
    holder = _hold(port)
    if holder is None:
        return False
    holder.close()
    return True


def says_port_taken(log: str) -> bool:
    """Whether a server says that a port was somebody else's when it wanted it: as the system words it, or SeaweedFS."""
    return any(words in log.lower() for words in ("address already in use", "port allocation failed"))


def _hold(port: int) -> socket.socket | None:
    """A socket bound to the port while others are being chosen; as servers do, with ``SO_REUSEADDR``."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((LOOPBACK, port))
        holder.listen(1)  # with SO_REUSEADDR only a listener keeps others out
    except OSError:
        holder.close()
        return None
    return holder
