"""The worker's log: what an exception shows in it, and what it must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import load_settings

ROOT = Path(__file__).parents[3]
URL = "redis://:pa55word@host/0"
FAILS = """
import logging, sys
from config.logging import configure_logging
configure_logging(sys.argv[1], "info")
def work(redis_url):
    password = redis_url.split(":")[2]
    raise ValueError("no such thing")
try:
    work(sys.argv[2])
except ValueError:
    logging.getLogger("anything").exception("it failed")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_exception_is_logged_with_its_traceback_and_without_local_variables(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILS, log_format, URL], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for shown in ("it failed", "ValueError: no such thing", "in work"):
        assert shown in done.stderr
    assert "pa55word" not in done.stderr


def test_settings_show_no_secret() -> None:
    settings = load_settings({}, redis_url=URL, s3_access_key="key", s3_secret_key="pa55word")
    assert "pa55word" not in f"{settings!r} {settings} {settings.for_stages()!r}"


CANNOT_ACKNOWLEDGE = """
import logging, sys
from kombu.message import Message
from config.logging import configure_logging
configure_logging(sys.argv[1], sys.argv[2])
class Channel:
    no_ack_consumers = None
    def basic_ack(self, *_, **__):
        raise ConnectionError("gone")
message = Message(channel=Channel(), delivery_tag="tag")
message.ack_log_error(logging.getLogger("celery.worker.request"), (ConnectionError,))
"""


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("error", 0)])
def test_a_message_that_cannot_be_acknowledged_is_one_warning(level: str, lines: int) -> None:
    command = [sys.executable, "-c", CANNOT_ACKNOWLEDGE, "json", level]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(entry["level"], "exception" in entry) for entry in entries] == [("warning", False)] * lines
