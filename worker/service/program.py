"""The worker program: check the surroundings, start the threads, run Celery until told to stop, leave nothing behind.

Exit codes: 0 after a stop that was asked for, 1 after one that was not (whoever watches the worker is to start it
again), 2 for settings that do not fit, 3 when Redis does not answer at the start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import Protocol

import structlog
from celery import Celery
from redis.exceptions import RedisError

from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.address import masked_url
from api_client.ledger.connecting import connect, unreachable
from api_client.ledger.keys import Keys
from api_client.ledger.messages import MessageSender
from config.celery import worker_queues
from config.log_events import LogEvent
from config.logging import configure_logging
from config.settings import Settings
from config.site_templates import load_site_templates, publish_site_templates
from worker.service.app import create_app
from worker.service.callbacks.courier import Courier
from worker.service.intake import Intake
from worker.service.metrics.machine import MachineCollector, WorkerFacts, scratch_disks
from worker.service.metrics.observer import Observer
from worker.service.metrics.server import MetricsServer
from worker.service.presence import Presence, package_version
from worker.service.questions import QuestionListener
from worker.service.reaper import Reaper
from worker.service.serving import serve
from worker.service.state.seal import Seal
from worker.service.state.transitions import Transitions
from worker.service.supervisor.drain import Drain
from worker.service.supervisor.forkserver import fork_context, start_forkserver
from worker.service.supervisor.heart import Heart
from worker.service.supervisor.supervisor import Equipment, Identity, Supervisor
from worker.service.warm_up import start_warm_up
from worker.storage.held import bind_writing

_log = structlog.stdlib.get_logger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_SETTINGS, EXIT_UNREACHABLE = 0, 1, 2, 3


def run(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT.

    Returns:
        The exit code; errors are printed, not raised.
    """
    configure_logging(settings.log_format, settings.log_level)
    try:
        return Service(settings).run()
    except PackagingError as error:
        _log.error(LogEvent.REDIS_UNREACHABLE if error.retryable else LogEvent.WORKER_STOPPED, error=str(error))
        print(f"{error}\n{error.remedy}", file=sys.stderr)
        away = error.code in (ErrorCode.REDIS_UNREACHABLE, ErrorCode.REDIS_NO_WRITES)
        return EXIT_UNREACHABLE if away else EXIT_SETTINGS
    except Exception as error:
        _log.exception(LogEvent.WORKER_STOPPED, error=str(error))
        return EXIT_FAILED


class ServicePart(Protocol):
    """Something of the worker's that runs beside its stages."""

    def start(self) -> object:
        """Start it."""

    def stop(self) -> None:
        """Stop it, also where it was not started."""


class Service:
    """Everything one worker process consists of."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._identity = Identity(f"{settings.host_name}-{os.getpid()}-{secrets.token_hex(2)}", settings.host_name)
        self._timeout_s = max(0.5, min(5.0, settings.lease_s / 3))
        self._templates = load_site_templates(settings.templates_file)
        self._redis = connect(settings.redis_url, self._timeout_s)
        self._seal = Seal(settings.seal_key)
        self._transitions = Transitions(self._redis, self._keys, settings.lease_s, self._seal)
        self._drain = Drain(settings.drain_s)
        self._sender = MessageSender(settings.redis_url, self._keys, self._timeout_s)
        self._reader = PackagingClient(settings.redis_url, key_prefix=settings.key_prefix, timeout_s=self._timeout_s)
        self._observer = Observer()
        self._gpus = settings.gpus if settings.gpus is not None else find_gpus()
        self._presence = Presence(settings, self._identity, self._redis, self._device)
        self._intake = Intake(settings, self._redis)
        self._heart = Heart(
            self._transitions, settings.heartbeat_s, settings.outage_s, self._beat, observer=self._observer
        )
        self._reaper = Reaper(
            settings,
            self._identity.worker,
            self._redis,
            self._transitions,
            self._sender,
            observer=self._observer,
        )

    def run(self) -> int:
        """Start, serve, stop.

        Returns:
            The exit code.

        Raises:
            PackagingError: ``redis_unreachable`` before anything was started.
        """
        self._check_redis()
        bind_writing(self._settings.may_write)
        settings, identity = self._settings, self._identity
        _log.info(
            LogEvent.WORKER_STARTING,
            worker=identity.worker,
            host=identity.host,
            version=package_version(),
            redis_url=masked_url(settings.redis_url),
            queues=list(worker_queues(settings)),
            slots=settings.slots,
        )
        with contextlib.ExitStack() as parts:
            parts.callback(self._leave)
            app = self._start(parts)
            return EXIT_DONE if serve(app, settings, identity.worker, self._drain, self._intake) else EXIT_FAILED

    def _start(self, parts: contextlib.ExitStack) -> Celery:
        """Start every part, and have each stopped with ``parts``, the newest first; also where a later one fails."""
        settings, identity = self._settings, self._identity
        context = fork_context(settings.preload)
        start_forkserver()
        supervisor = Supervisor(
            settings,
            identity,
            Equipment(
                redis=self._redis,
                transitions=self._transitions,
                heart=self._heart,
                sender=self._sender,
                context=context,
                drain=self._drain,
                observer=self._observer,
                gpus=self._gpus,
                seal=self._seal,
            ),
        )
        app = create_app(settings, supervisor, self._observer)
        threads: tuple[ServicePart, ...] = (
            self._heart,
            self._reaper,
            QuestionListener(settings, identity.host, context, self._drain),
            self._metrics_server(),
            Courier(settings, self._redis, self._reader.get, self._observer),
        )
        for part in threads:
            parts.callback(part.stop)  # before its start, which may fail half-way
            part.start()
        if (warm_up := start_warm_up(settings)) is not None:
            parts.callback(warm_up.kill)
        return app

    def _metrics_server(self) -> MetricsServer:
        settings, identity = self._settings, self._identity
        facts = WorkerFacts(
            worker=identity.worker,
            host=identity.host,
            version=package_version(),
            device=self._device,
            slots=settings.slots,
            lease_s=settings.lease_s,
            disks=scratch_disks(settings),
        )
        registry = self._observer.series.registry
        registry.register(MachineCollector(facts, self._observer, lambda: self._drain.requested))
        return MetricsServer(registry, settings.metrics_host, settings.metrics_port)

    @property
    def _device(self) -> str:
        return f"cuda x{len(self._gpus)}" if self._gpus else "cpu"

    def _beat(self) -> None:
        self._presence.beat(running=self._heart.running, draining=self._drain.requested)
        self._intake.look()

    def _check_redis(self) -> None:
        try:
            self._redis.ping()
            self._warn_of_settings()
            config = {
                "job_ttl_ms": int(self._settings.job_ttl_s * 1000),
                "events_max": self._settings.events_max,
                "events_bytes": self._settings.events_bytes,
                "callbacks": int(self._settings.callback_secret is not None),
                "callbacks_private": int(self._settings.callback_allow_private),
            }
            self._redis.hset(self._keys.named("config"), mapping=config)
            publish_site_templates(self._redis, self._keys, self._templates)
            self._beat()
        except RedisError as error:
            raise unreachable(self._settings.redis_url, error) from error
        if self._templates:
            _log.info(LogEvent.TEMPLATES_PUBLISHED, names=sorted(self._templates))

    def _warn_of_settings(self) -> None:
        for warning in self._reader.ping().warnings:
            _log.warning(LogEvent.REDIS_WARNING, warning=warning)

    def _leave(self) -> None:
        """What comes after all threads have stopped."""
        self._presence.forget()
        self._sender.close()
        self._reader.close()
        self._redis.close()
        _log.info(LogEvent.WORKER_STOPPED, worker=self._identity.worker)


def find_gpus() -> tuple[str, ...]:
    """GPUs for the slots: those of ``CUDA_VISIBLE_DEVICES``, else those the driver lists. No GPU library is loaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part for part in visible.split(",") if part and part != "-1")
    listed = Path("/proc/driver/nvidia/gpus")
    return tuple(str(number) for number in range(len(list(listed.iterdir())))) if listed.is_dir() else ()
