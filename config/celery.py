"""Celery's settings for a worker: what is relied upon, and what is switched off because it cannot be.

The plan in Redis decides what runs; a message only wakes a worker. So Celery's retries, time limits, revokes and
results are not used, a message delivered twice is harmless, and a lost one is sent again by the reaper.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu.utils.scheduling import priority_cycle

from api_client.ledger.address import broker_address
from api_client.ledger.keys import Keys
from api_client.ledger.messages import QUEUE_HEAVY, QUEUE_IO, host_queue, transport_options
from config.settings import Settings

BROKER_TIMEOUT_S = 10.0


def worker_queues(settings: Settings) -> tuple[str, ...]:
    """Queues a worker takes from, its own host's first."""
    return (host_queue(settings.host_name), QUEUE_HEAVY, QUEUE_IO)


class BegunFirst(priority_cycle):  # type: ignore[misc]
    """The order in which a worker looks into its queues: jobs that were begun before new ones.

    In turns, as kombu does by itself, a worker with a backlog would prepare a new job after every stage: all of them at
    work at once, the scratch of all on its disk, and nothing left for a worker that comes later. A message's priority
    still comes first, whatever its queue.
    """

    def update(self, it: Iterable[str]) -> None:
        """Take the queues; kombu names them in no order."""
        self.items[:] = sorted(it, key=lambda queue: (queue == QUEUE_IO, queue == QUEUE_HEAVY))


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Configuration of the Celery app."""
    url, options = broker_address(settings.redis_url)
    return {
        "broker_url": url,
        "broker_transport_options": {
            **transport_options(Keys(settings.key_prefix), BROKER_TIMEOUT_S),
            "visibility_timeout": settings.visibility_timeout_s,
            "queue_order_strategy": f"{__name__}:{BegunFirst.__name__}",
            **options,
        },
        "broker_connection_timeout": BROKER_TIMEOUT_S,
        # Reconnect for ever: the running stage is kept alive meanwhile (``outage_s``).
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # As well where Redis answers with an error, such as that it takes no writes; the worker would end otherwise.
        "broker_channel_error_retry": True,
        # A wake-up is taken off its queue for good only when its stage has been dealt with.
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,
        "task_reject_on_worker_lost": False,
        "worker_prefetch_multiplier": 1,
        # It ends running tasks as revoked when the connection drops; leases make it needless.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_concurrency": settings.slots,
        "worker_pool": "threads",
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": True,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_create_missing_queues": True,
        "task_default_queue": QUEUE_HEAVY,
        "enable_utc": True,
    }
