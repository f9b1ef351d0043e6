"""Every Prometheus metric, in one table: what rules and dashboards may rely on. Data only.

Workers count what they do; the console counts what lies in Redis, for the whole installation. So a sum over workers
gives rates, and one console gives states. A worker's series carry no worker name (Prometheus adds ``instance``);
``trainpack_worker_info`` joins the two.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class MetricType(StrEnum):
    """Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Exporter(StrEnum):
    """Who exports a metric."""

    WORKER = "worker"
    CONSOLE = "console"


class Metric(NamedTuple):
    """One row of the table. A histogram exports ``name`` with ``_bucket``, ``_sum`` and ``_count``."""

    name: str
    type: MetricType
    exporter: Exporter
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_COUNTER, _GAUGE, _HISTOGRAM = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM
_WORKER, _CONSOLE = Exporter.WORKER, Exporter.CONSOLE

_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
_LATE_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_BYTES_PER_SECOND = (1e6, 3e6, 1e7, 3e7, 1e8, 2e8, 4e8, 8e8, 1.6e9, 3.2e9, 6.4e9)

# Stages and jobs, as the workers run them.
STAGE_DURATION = Metric(
    "trainpack_stage_duration_seconds",
    _HISTOGRAM,
    _WORKER,
    ("stage", "outcome"),
    "Time of ended attempts. outcome: succeeded, failed, retried, crashed, handed_back, cancelled, lost.",
    _SECONDS,
)
STAGE_THROUGHPUT = Metric(
    "trainpack_stage_throughput_bytes_per_second",
    _HISTOGRAM,
    _WORKER,
    ("stage",),
    "Bytes of the files that a stage made, by the time it took. First attempts only: later ones may resume.",
    _BYTES_PER_SECOND,
)
STAGE_RETRIES = Metric(
    "trainpack_stage_retries_total",
    _COUNTER,
    _WORKER,
    ("stage", "code"),
    "Attempts that ended with an error and are followed by another attempt. A rescue has the code worker_lost.",
)
STAGE_FAILURES = Metric(
    "trainpack_stage_failures_total",
    _COUNTER,
    _WORKER,
    ("stage", "code"),
    "Stages that failed for good, and their job with them.",
)
JOBS_FINISHED = Metric(
    "trainpack_jobs_finished_total",
    _COUNTER,
    _WORKER,
    ("state",),
    "Jobs that ended on a worker. state: succeeded, failed, cancelled (while a stage ran).",
)
STAGE_READ = Metric(
    "trainpack_stage_read_bytes_total",
    _COUNTER,
    _WORKER,
    ("stage",),
    "Bytes that stage processes fetched from storage, as the kernel counts; what the page cache had is not in it.",
)
STAGE_WRITTEN = Metric(
    "trainpack_stage_written_bytes_total",
    _COUNTER,
    _WORKER,
    ("stage",),
    "Bytes that stage processes wrote to storage, as the kernel counts.",
)
UPLOADED = Metric(
    "trainpack_uploaded_bytes_total",
    _COUNTER,
    _WORKER,
    (),
    "Bytes of files uploaded to object storage and verified there.",
)
UPLOAD_ERRORS = Metric(
    "trainpack_upload_errors_total",
    _COUNTER,
    _WORKER,
    ("code",),
    "Attempts of publish that object storage ended. code: upload_failed, storage_unreachable, storage_denied.",
)
QUALITY_KLD = Metric(
    "trainpack_quality_mean_kld_nats",
    _HISTOGRAM,
    _WORKER,
    ("quant_type",),
    "Mean KLD of measured files against the model they were made from. quant_type: none for unquantized ones.",
    (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
QUALITY_RETENTION = Metric(
    "trainpack_quality_retention_ratio",
    _HISTOGRAM,
    _WORKER,
    ("quant_type",),
    "Share of the training that measured files keep, where it can be told.",
    (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1),
)

# Leases and messages, as the workers keep them.
LEASE_RENEWAL_DELAY = Metric(
    "trainpack_lease_renewal_delay_seconds",
    _HISTOGRAM,
    _WORKER,
    (),
    "How much later than planned leases were renewed. Compare with trainpack_worker_lease_seconds.",
    _LATE_S,
)
LEASE_RENEWAL_ERRORS = Metric(
    "trainpack_lease_renewal_errors_total", _COUNTER, _WORKER, (), "Renewals that Redis did not answer."
)
LEASES_LOST = Metric(
    "trainpack_leases_lost_total",
    _COUNTER,
    _WORKER,
    ("stage",),
    "Attempts whose result was refused or dropped because another attempt had taken over.",
)
RESCUES = Metric(
    "trainpack_rescues_total",
    _COUNTER,
    _WORKER,
    ("stage",),
    "Running stages taken from a worker that fell silent; counted by the worker that took them.",
)
MESSAGES_RESENT = Metric(
    "trainpack_messages_resent_total", _COUNTER, _WORKER, (), "Queued stages whose message was gone and was sent again."
)
MESSAGES_DROPPED = Metric(
    "trainpack_messages_dropped_total",
    _COUNTER,
    _WORKER,
    (),
    "Entries of queues that were no messages and were dropped. Nothing of worth is lost; somebody else writes there.",
)
CALLBACKS = Metric(
    "trainpack_callbacks_total",
    _COUNTER,
    _WORKER,
    ("outcome",),
    "Tries to deliver a callback. outcome: delivered, retried, given_up.",
)

# One worker.
WORKER_INFO = Metric(
    "trainpack_worker_info",
    _GAUGE,
    _WORKER,
    ("worker", "host", "version", "device"),
    "1. Who exports; device is cpu or cuda xN.",
)
WORKER_SLOTS = Metric("trainpack_worker_slots", _GAUGE, _WORKER, (), "Stages that the worker runs at once.")
WORKER_LEASE = Metric(
    "trainpack_worker_lease_seconds", _GAUGE, _WORKER, (), "The lease time that the worker is set to."
)
WORKER_RUNNING = Metric(
    "trainpack_worker_stages_running",
    _GAUGE,
    _WORKER,
    ("stage",),
    "Stages that the worker runs now, which is the leases it holds.",
)
WORKER_DRAINING = Metric(
    "trainpack_worker_draining", _GAUGE, _WORKER, (), "1 from the first signal to stop until the end, else 0."
)
SCRATCH_FREE = Metric(
    "trainpack_scratch_free_bytes",
    _GAUGE,
    _WORKER,
    ("path",),
    "Free space for stages, one series for each file system they may use.",
)
SCRATCH_TOTAL = Metric("trainpack_scratch_total_bytes", _GAUGE, _WORKER, ("path",), "Size of the same file systems.")
GPU_UTILIZATION = Metric(
    "trainpack_gpu_utilization_ratio",
    _GAUGE,
    _WORKER,
    ("gpu", "model"),
    "Use of a GPU by all its users, 0 to 1. Only where nvidia-smi answers; sampled at most every 10 s.",
)
GPU_MEMORY_USED = Metric(
    "trainpack_gpu_memory_used_bytes",
    _GAUGE,
    _WORKER,
    ("gpu", "model"),
    "Memory of a GPU in use by all its users. Only where nvidia-smi answers.",
)
GPU_MEMORY_TOTAL = Metric(
    "trainpack_gpu_memory_total_bytes",
    _GAUGE,
    _WORKER,
    ("gpu", "model"),
    "Memory of a GPU. Only where nvidia-smi answers.",
)

# The installation, as Redis has it.
REDIS_UP = Metric(
    "trainpack_redis_up",
    _GAUGE,
    _CONSOLE,
    (),
    "1 if Redis answered this scrape and takes writes, else 0; where it did not answer, none of the other console "
    "metrics is there.",
)
REDIS_REFUSES = Metric(
    "trainpack_redis_refuses_writes",
    _GAUGE,
    _CONSOLE,
    ("reason",),
    "1 while Redis answers and takes no writes. reason: full (maxmemory), replica, disk, replicas (too few follow it).",
)
JOBS = Metric(
    "trainpack_jobs",
    _GAUGE,
    _CONSOLE,
    ("state", "template"),
    "Jobs that Redis holds. state: queued, running, succeeded, failed, cancelled. Finished ones expire.",
)
QUEUE_MESSAGES = Metric(
    "trainpack_queue_messages", _GAUGE, _CONSOLE, ("queue",), "Messages that wait in a queue for a worker."
)
QUEUE_STAGES = Metric(
    "trainpack_queue_stages",
    _GAUGE,
    _CONSOLE,
    ("queue",),
    "Stages that are due and wait for a worker: the queue's depth, whatever became of their messages.",
)
QUEUE_OLDEST = Metric(
    "trainpack_queue_oldest_seconds",
    _GAUGE,
    _CONSOLE,
    ("queue",),
    "How long the longest waiting stage of a queue has been due; 0 for an empty queue.",
)
QUEUE_WORKERS = Metric(
    "trainpack_queue_workers",
    _GAUGE,
    _CONSOLE,
    ("queue",),
    "Workers that take from a queue and do not drain.",
)
STAGES_DELAYED = Metric(
    "trainpack_stages_delayed", _GAUGE, _CONSOLE, (), "Stages that wait out the delay before a retry."
)
STAGES_WAITING = Metric(
    "trainpack_stages_waiting",
    _GAUGE,
    _CONSOLE,
    ("reason",),
    "Stages that wait, by reason: label_limit, paused, no_worker, host_away, draining, newer_worker, retry_at, "
    "publishing, busy. A stage that is about to begin has none.",
)
QUEUE_PAUSED = Metric("trainpack_queue_paused", _GAUGE, _CONSOLE, ("queue",), "1 while a queue or its host is paused.")
LEASES = Metric("trainpack_leases", _GAUGE, _CONSOLE, (), "Leases held, which is stages running.")
LEASES_OVERDUE = Metric(
    "trainpack_leases_overdue", _GAUGE, _CONSOLE, (), "Leases that have run out and wait for a rescue."
)
WORKERS = Metric("trainpack_workers", _GAUGE, _CONSOLE, ("host", "draining"), "Workers alive. draining: true or false.")
WORKER_SLOTS_TOTAL = Metric(
    "trainpack_slots", _GAUGE, _CONSOLE, (), "Slots of all workers that do not drain: stages that can run at once."
)
HEARTBEAT_AGE = Metric(
    "trainpack_worker_heartbeat_age_seconds",
    _GAUGE,
    _CONSOLE,
    ("worker", "host"),
    "Time since a worker's last heartbeat. A silent worker's series goes after one lease time.",
)
CALLBACKS_PENDING = Metric(
    "trainpack_callbacks_pending", _GAUGE, _CONSOLE, (), "Callbacks that are still to be delivered."
)

METRICS: dict[str, Metric] = {row.name: row for row in list(globals().values()) if isinstance(row, Metric)}
"""Every row, by name."""
