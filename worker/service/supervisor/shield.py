"""Loaded first by the fork server: signals that reach every process of a group must not end it.

Terminals and service managers signal whole groups; the worker drains its stages then, so the fork server has to outlive
the signal. A handler that does nothing is used, and not ``SIG_IGN``, which programs that a stage starts would inherit.
"""

from __future__ import annotations

import signal

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by whoever started this process
