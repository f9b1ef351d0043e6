"""Where a callback may go. A name is looked up once, and the connection goes to an address that was checked."""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """Every address of the host lies where callbacks may not go."""


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also behind the forms in which IPv6 wraps IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = _wrapped(found) if isinstance(found, IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _wrapped(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def checked_addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Look a host up.

    Returns:
        The addresses that a connection may be made to, in the resolver's order.

    Raises:
        AddressRefused: there is none.
        OSError: the name cannot be resolved.
    """
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [*dict.fromkeys(str(answer[4][0]) for answer in answers)]
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise AddressRefused(f"{host} is {', '.join(addresses)}, which is not public")
    return allowed
