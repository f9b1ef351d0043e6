"""The Celery app that Flower watches: a worker's broker settings without its tasks. ``celery -A flower_app flower``."""

from __future__ import annotations

from celery import Celery

from config.celery import celery_settings
from config.settings import load_settings

app = Celery("trainpack", set_as_current=False)
app.conf.update(celery_settings(load_settings()))
