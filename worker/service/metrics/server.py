"""``/metrics`` on a port of the worker's own. A worker runs without it where the port cannot be had."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from config.log_events import LogEvent

_log = structlog.stdlib.get_logger(__name__)


class MetricsServer:
    """The server; off where no port is set.

    Args:
        registry: What it shows.
        host: Address to listen on.
        port: Port; 0 takes a free one and logs it.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int | None) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> int | None:
        """Start listening.

        Returns:
            The port, or ``None`` where it is off or the port cannot be had, which is logged.
        """
        if self._port is None:
            return None
        try:
            server, thread = start_http_server(self._port, self._host, registry=self._registry)
        except (OSError, OverflowError) as error:
            _log.warning(LogEvent.METRICS_OFF, host=self._host, port=self._port, error=str(error))
            return None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        self._stop = stop
        port = int(server.server_port)
        _log.info(LogEvent.METRICS_READY, address=f"http://{self._host}:{port}/metrics")
        return port

    def stop(self) -> None:
        """Stop listening."""
        self._stop()
