"""Workers and queues, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from api_client.contract.waiting import WaitReason


class RunningAttempt(NamedTuple):
    """An attempt under way, in the words in which a worker tells of it; its stage may be one of a newer version."""

    job_id: str
    stage: str
    attempt: str


class WorkerInfo(BaseModel):
    """What a worker last said of itself. It is listed while it is heard from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    host: str
    pid: int
    version: str
    device: str
    slots: int
    queues: tuple[str, ...]
    running: tuple[str, ...]
    """``job_id:stage:attempt`` of the stages it runs."""
    draining: bool
    torch_loaded: bool
    """Whether the worker process itself has imported torch; it should not, its stage processes do."""
    started_at: datetime
    last_heartbeat_at: datetime
    schema_version: int = 1
    """Newest jobs that it can run; a version before this field ran 1."""
    label_limits: dict[str, int] = {}
    """Caps by label that it was started with; what ``limits`` says while the service runs counts before them."""

    load: float | None = None
    """Processes that want to run on its host, a minute's mean, for each core; ``None`` where it is not known."""
    disk_free_bytes: int | None = None
    """Room on the disk of its scratch or home directory."""
    disk_total_bytes: int | None = None

    @property
    def attempts(self) -> tuple[RunningAttempt, ...]:
        """What it runs, taken apart; what is missing is empty."""
        parts = ((*name.split(":", 2), "", "") for name in self.running)
        return tuple(RunningAttempt(*part[:3]) for part in parts)


class QueueInfo(BaseModel):
    """Messages that wait in one queue, and the workers that take from it."""

    model_config = ConfigDict(frozen=True)

    name: str
    waiting: int
    workers: int
    due: int = 0
    """Stages that are due and wait for a worker, whatever became of their messages."""
    oldest_s: float | None = None
    """How long the longest waiting of them has been due, seconds; ``None`` where none waits."""
    waiting_for: WaitReason | None = None
    """Why nobody takes what is due there; ``None`` where nothing is due, or a slot is free for it."""
    paused: bool = False
    """Whether the queue, or the host that it belongs to, is paused."""


class Pause(BaseModel):
    """A queue or a host from which nothing new begins until someone lets it go on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """``queue:NAME`` or ``host:NAME``."""
    by: str
    """Who paused it."""
    at: datetime


class LabelLimit(BaseModel):
    """How many stages may run at once with a label."""

    model_config = ConfigDict(frozen=True)

    name: str
    """A label (``team``: each of its values) or one of its values (``team=red``)."""
    limit: int | None
    """``None``: no bound."""
    set_here: bool
    """Whether it was set while the service runs; else workers were started with it."""
    waiting: int = 0
    """Stages that wait for a place under it."""


class Fairness(BaseModel):
    """By which label new jobs are begun in turn."""

    model_config = ConfigDict(frozen=True)

    label: str | None = None
    """``None``: in the order of their messages."""
    weights: dict[str, int] = {}
    """Jobs begun in one round, by value of the label; 1 where not named. The value of jobs without it is empty."""


class Change(BaseModel):
    """What somebody changed while the service runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime
    by: str
    action: str
    """``limit``, ``pause``, ``resume``, ``fairness``."""
    name: str
    value: str


class HealthInfo(BaseModel):
    """What Redis says of itself."""

    model_config = ConfigDict(frozen=True)

    version: str
    eviction_policy: str
    append_only: bool
    used_memory_bytes: int
    latency_ms: float
    refuses_writes: str = ""
    """Why it takes no writes, as ``ledger.writes`` names it; empty where it takes them."""
    server: str = ""
    """Its kind and version: ``Valkey 9.1.2``."""
    durability: tuple[str, ...] = ()
    """Why a restart might lose jobs, each with what to do; see :mod:`api_client.ledger.durability`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should change."""
        lines = []
        if self.eviction_policy not in ("noeviction", ""):
            lines.append(
                f"maxmemory-policy is {self.eviction_policy}: a full Redis would drop jobs; set it to noeviction"
            )
        return (*lines, *self.durability)
