"""Where a callback may go. A name is looked up once, and the connection goes to an address that was checked."""

from __future__ import annotations

import socket

from api_client.contract.callbacks import is_public


class AddressRefused(Exception):
    """Every address of the host lies where callbacks may not go."""


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
