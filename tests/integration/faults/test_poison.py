"""What comes over the broker and is no wake-up: it ends no worker, and no job waits for it."""

from __future__ import annotations

import urllib.request

import pytest
from celery import Celery

from api_client.ledger.address import broker_address
from api_client.ledger.messages import QUEUE_HEAVY, QUEUE_IO, queue_keys, transport_options
from tests.integration.harness import Installation, eventually
from tests.ports import free_port

pytestmark = pytest.mark.integration
ENTRIES = (
    "not json", "", "{", "7", "null", '"text"', "[]", "[[1, 2]]", "{}", '{"headers": null}', "[" * 100_000,
    '{"body": "e30=", "headers": {}, "properties": {}}',
    '{"body": 7, "headers": {"id": 1}, "properties": {"delivery_tag": "x", "delivery_info": 5}}',
)  # fmt: skip


def test_entries_that_are_no_messages_end_no_worker(service: Installation) -> None:
    port = free_port()
    worker = service.start_worker(metrics_port=port)
    keys = [name for queue in (QUEUE_HEAVY, QUEUE_IO) for name in queue_keys(service.keys, queue)[:2]]
    for key in keys:
        service.redis.lpush(key, *ENTRIES, b"\xff\xfe")
    eventually(lambda: not service.redis.exists(*keys), "all are taken")
    service.assert_settled(service.wait(service.submit()))
    assert worker.process.poll() is None
    assert (dropped := worker.lines.count('"message_unreadable"')) >= len(ENTRIES)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert f"trainpack_messages_dropped_total {float(dropped)}" in answer.read().decode()


def test_a_broadcast_shutdown_ends_no_worker(service: Installation) -> None:
    worker = service.start_worker()
    url, options = broker_address(service.url)
    app = Celery("other", broker=url, set_as_current=False)
    app.conf.broker_transport_options = transport_options(service.keys, 5) | options
    assert app.control.ping(timeout=5), "questions are answered"
    for order in ("shutdown", "pool_shrink", "cancel_consumer", "revoke"):
        app.control.broadcast(order)
    assert app.control.ping(timeout=5)
    app.close()
    service.assert_settled(service.wait(service.submit()))
    assert worker.process.poll() is None
