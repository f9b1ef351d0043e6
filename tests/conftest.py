"""What every test needs, whoever started it."""

from __future__ import annotations

import signal

# a run started in the background of a script ignores Ctrl-C, and so would every process that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
