"""The Celery app of a worker."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from config.celery import celery_settings, worker_queues
from config.settings import Settings
from worker.service.metrics.observer import Observer
from worker.service.supervisor.supervisor import Supervisor
from worker.service.tasks import register
from worker.service.unreadable import drop_unreadable, obey_nobody


def create_app(settings: Settings, supervisor: Supervisor, observer: Observer) -> Celery:
    """Build the app with its one task.

    Args:
        settings: This worker's.
        supervisor: Runs the stages.
        observer: Counts entries of queues that are no messages.
    """
    drop_unreadable(observer.dropped)
    obey_nobody()
    app = Celery("trainpack", set_as_current=False)
    app.conf.update(celery_settings(settings))
    app.conf.task_queues = [Queue(name, routing_key=name) for name in worker_queues(settings)]
    register(app, supervisor)
    return app
