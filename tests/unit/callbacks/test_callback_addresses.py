"""Which addresses are of the open internet."""

from __future__ import annotations

import pytest

from api_client.contract.callbacks import is_public, private_host
from worker.service.callbacks.addresses import AddressRefused, checked_addresses


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "::1"])
def test_a_name_is_judged_by_what_it_resolves_to(host: str) -> None:
    with pytest.raises(AddressRefused, match="not public"):
        checked_addresses(host, 80, allow_private=False)
    assert checked_addresses(host, 80, allow_private=True)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:8080/x", "127.0.0.1"),
        ("https://[::1]/", "::1"),
        ("http://localhost/done", "localhost"),
        ("http://10.1.2.3/", "10.1.2.3"),
        ("https://8.8.8.8/", None),
        ("https://intranet.example/", None),
    ],
)
def test_what_an_address_says_of_itself(url: str, host: str | None) -> None:
    assert private_host(url) == host
