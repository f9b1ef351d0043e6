"""What receivers rely on: the address rules of a request and the signature."""

from __future__ import annotations

import time

import pytest

from api_client import PackagingError, PackagingRequest
from api_client.contract.callbacks import SIGNATURE_HEADER, TIMESTAMP_HEADER, shown_url, sign, verify

SECRET = "a secret of some length"


def headers(timestamp: int, signature: str) -> dict[str, str]:
    return {TIMESTAMP_HEADER.lower(): str(timestamp), SIGNATURE_HEADER.upper(): signature}


def test_the_signature_is_what_the_page_says() -> None:
    """The same by hand: ``printf '1700000000.{}' | openssl dgst -sha256 -hmac 'key'``."""
    assert sign("key", 1700000000, b"{}") == "v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"


def test_only_the_genuine_article_verifies() -> None:
    now = int(time.time())
    good = sign(SECRET, now, b"body")
    assert verify(SECRET, headers(now, good), b"body")
    assert not verify(SECRET, headers(now, good), b"other")
    assert not verify("another secret, as long", headers(now, good), b"body")
    assert not verify(SECRET, headers(now + 1, good), b"body")
    assert not verify(SECRET, headers(now, "v1=täuschung"), b"body")
    assert not verify(SECRET, {}, b"body")
    assert not verify(SECRET, {TIMESTAMP_HEADER: "soon", SIGNATURE_HEADER: good}, b"body")


def test_an_old_signature_counts_for_nothing() -> None:
    old = int(time.time()) - 1000
    signed = headers(old, sign(SECRET, old, b"body"))
    assert not verify(SECRET, signed, b"body")
    assert verify(SECRET, signed, b"body", tolerance_s=2000)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "file:///etc/passwd",
        "//example.com/x",
        "http:///x",
        "http://user:pass@example.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX: y",
        "http://example.com:99999/",
        "http://exämple.com/",
        "gopher://127.0.0.1/",
        "http://[::1/",
        "x" * 3000,
    ],
)
def test_odd_addresses_are_refused_with_the_field(url: str) -> None:
    with pytest.raises(PackagingError) as caught:
        PackagingRequest(callback_url=url)
    assert caught.value.code == "request_invalid"
    assert caught.value.fields["field"] == "callback_url"


def test_a_query_is_kept_and_not_shown() -> None:
    url = "https://example.com:8443/done?token=abc"
    assert PackagingRequest(callback_url=url).callback_url == url
    assert shown_url(url) == "https://example.com:8443/done?..."
    assert shown_url("https://example.com/done") == "https://example.com/done"
