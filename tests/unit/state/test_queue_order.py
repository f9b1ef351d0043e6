"""The order in which a worker looks into its queues."""

from __future__ import annotations

from itertools import permutations

from kombu.utils.scheduling import cycle_by_name

from config.celery import BegunFirst, celery_settings
from config.settings import load_settings


def test_new_jobs_come_last_whatever_was_taken_before() -> None:
    name = celery_settings(load_settings())["broker_transport_options"]["queue_order_strategy"]
    assert cycle_by_name(name) is BegunFirst
    wanted = ["packaging.host.a", "packaging.heavy", "packaging.io"]
    for queues in permutations(wanted):
        cycle = BegunFirst()
        cycle.update(queues)
        for taken in queues:
            assert cycle.consume(3) == wanted
            cycle.rotate(taken)
