"""The Celery app for tools that look on, such as Flower: the workers' settings, and no task of its own.

``celery -A config.flower flower`` reads the same ``TRAINPACK_*`` variables as a worker (of them it needs
``TRAINPACK_REDIS_URL``, and ``TRAINPACK_KEY_PREFIX`` where that is set), so that it listens under the same key prefix
and counts all ten priorities of a queue.
"""

from __future__ import annotations

from functools import cache

from celery import Celery
from kombu import Queue
from redis.connection import parse_url

from api_client.ledger.messages import QUEUE_HEAVY, QUEUE_IO
from config.celery import celery_settings
from config.settings import Settings, load_settings


def create_onlooker(settings: Settings) -> Celery:
    """An app that talks to the workers' broker and runs nothing."""
    app = Celery("trainpack", set_as_current=False)
    app.conf.update(celery_settings(settings))
    app.conf.task_queues = [Queue(name, routing_key=name) for name in (QUEUE_HEAVY, QUEUE_IO)]
    if settings.redis_url.startswith("rediss://"):
        # Flower counts messages over a connection of its own, for which it does not read the URL's parameters.
        parameters = parse_url(settings.redis_url)  # type: ignore[no-untyped-call]
        app.conf.broker_use_ssl = {name: value for name, value in parameters.items() if name.startswith("ssl_")}
    return app


@cache
def _app() -> Celery:
    return create_onlooker(load_settings())


def __getattr__(name: str) -> Celery:
    # Settings are read when Celery asks for the app, not when this module is imported.
    if name == "app":
        return _app()
    raise AttributeError(name)
