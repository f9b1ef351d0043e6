"""Settings of a worker machine, from ``TRAINPACK_*`` environment variables.

Read once at start-up by :func:`load_settings` and passed on; frozen; never read at import. Each field says what it does
and what goes wrong when it is too low or too high. An unknown ``TRAINPACK_*`` name is refused with a suggestion.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.confirming import SubmitWait
from api_client.s3.settings import StorageSettings
from api_client.words.suggestions import did_you_mean, nearest
from config.roots import Roots

PREFIX = "TRAINPACK_"
CONSOLE_PREFIX = "TRAINPACK_CONSOLE_"
"""Settings of the console, which checks them itself; a worker that shares its environment leaves them alone."""


class StageSettings(BaseModel):
    """The part of the settings that stages see."""

    model_config = ConfigDict(frozen=True)

    home: Path
    cache_dir: Path
    allowed_roots: Roots
    run_roots: tuple[Path, ...]
    allowed_buckets: tuple[str, ...] | None
    allowed_uploads: tuple[str, ...] | None
    registry_plain_http: bool
    threads: int
    disk_reserve_bytes: int
    input_cache_bytes: int
    verify_load: bool
    llama_cpp_dir: Path | None
    kernel_cache_dir: Path
    storage: StorageSettings


class Settings(BaseSettings):
    """All settings of one worker machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """Broker and state. ``redis://``, ``rediss://`` or ``sentinel://host:port,host:port/service/db``."""
    key_prefix: str = "trainpack"
    """First part of every Redis key; separates installations that share one Redis."""
    host_name: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the machine whose disk holds the scratch. Set it where a container's name changes with each start."""
    submit_wait: SubmitWait = SubmitWait.NONE
    """Of producers and the console: what a submit waits for before it returns. ``disk``: the server's append-only file;
    ``replica``: one of them; ``none``: a crash of the server may lose jobs of the last seconds."""
    templates_file: Path | None = None
    """Site templates, TOML. Unset: the shipped file, which has none."""
    stage_registry: str = "worker.stages.registry:STAGES"
    """``module:name`` of the mapping from stage to ``module:function``."""
    preload: str = "worker.service.preload"
    """Module that the fork server imports once, so that stages start fast. Empty: each stage imports for itself."""
    home: Path = Path.home() / ".trainpack"
    """State of the embedded stack, caches, scratch of remote outputs."""
    scratch_dir: Path | None = None
    """Where jobs work. Unset: beside the output directory, so that publishing is a rename and not a copy."""
    scratch_shared: bool = False
    """Whether every host sees the same scratch directory; then any host may run any stage."""
    allowed_roots: Annotated[Roots, NoDecode] = Roots.anywhere()
    """Directories that jobs may read and write (``:``-separated). Unset: any, for one's own machine."""
    run_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories under which the console lists training runs (``:``-separated), as far as jobs may read them."""
    allowed_buckets: tuple[str, ...] | None = None
    """Buckets that jobs may read and write (``:``-separated). Unset: every bucket that the credentials open."""
    allowed_uploads: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Beginnings of what ``upload_to`` may name (``hf://acme oci://registry.example``, separated by spaces). Empty:
    no place. Unset: every one that the worker's credentials open; whoever submits then writes with your token."""
    registry_plain_http: bool = False
    """Speak HTTP, not HTTPS, to OCI registries, as inside a cluster. One on this machine is always spoken to so."""

    s3_endpoint_url: str | None = None
    """Address of the S3-compatible storage. Unset: the public one of the region."""
    s3_region: str = "us-east-1"
    """Its region; most servers other than the public ones take any."""
    s3_access_key: SecretStr | None = None
    """Name of the credentials. Unset: as the environment of boto3 says."""
    s3_secret_key: SecretStr | None = None
    """Their secret."""
    s3_bucket: str | None = None
    """Bucket that outputs are uploaded to. Unset: nothing is, unless a job's output directory is ``s3://``."""
    s3_prefix: str = ""
    """What the keys of all outputs begin with, before the job's id."""
    s3_part_size_bytes: int = Field(default=16 * 2**20, ge=5 * 2**20)
    """Part size of multipart uploads. Low: many requests; high: more is sent again after a failure."""
    s3_concurrency: int = Field(default=4, ge=1, le=64)
    """Parts that are uploaded at once. Low: slow over long distances; high: as many parts are in memory."""
    s3_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for one answer of the storage, before the request is sent again."""

    threads: int = Field(default=0, ge=0)
    """Threads for quantizing and converting. 0: all cores that the process may use."""
    slots: int = Field(default=1, ge=1)
    """Stages that run at once on this worker. More than one per GPU or disk slows all of them."""
    gpus: tuple[str, ...] | None = None
    """GPUs for the slots, one each (``0:1``). Unset: those that ``CUDA_VISIBLE_DEVICES`` or the driver names."""
    disk_reserve_bytes: int = Field(default=256 * 2**20, ge=0)
    """Space that prepare leaves free beyond the estimate."""
    input_cache_bytes: int = Field(default=200 * 2**30, ge=0)
    """Bound of the cache of downloaded inputs; the least recently used go first."""
    verify_load: bool = True
    """Load every output in llama.cpp before publishing. Off: structure only, faster, less certain."""
    llama_cpp_dir: Path | None = None
    """A newer llama.cpp checkout, whose converter replaces the packaged one."""
    kernel_cache_dir: Path | None = None
    """Where compiled kernels are kept. Unset: under ``home``."""
    warm_up: bool = True
    """Compile the common kernels in idle time when the worker starts. Off: the first job of each type does it."""

    lease_s: float = Field(default=30.0, gt=0)
    """How long a silent attempt holds its stage. Low: a pause of the machine loses the work; high: slow rescue."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    """How often leases are renewed and workers report."""
    reap_s: float = Field(default=10.0, gt=0)
    """How often one worker looks for lost stages and messages."""
    requeue_after_s: float = Field(default=60.0, gt=0)
    """Age at which a queued stage's message counts as lost and is sent again."""
    stage_timeout_s: float = Field(default=24 * 3600.0, gt=0)
    """Longest run of one attempt."""
    stage_memory_bytes: int | None = Field(default=None, ge=2**28)
    """Memory (resident) a stage's process may use before it is ended. Unset: no bound."""
    drain_s: float = Field(default=60.0, gt=0)
    """Longest wait for a safe point when draining. Keep it below the orchestrator's kill delay."""
    cancel_grace_s: float = Field(default=2.0, ge=0)
    """How long a cancelled stage may clean up before its process group is killed."""
    max_retries: int = Field(default=5, ge=0)
    """Further attempts after transient failures."""
    retry_base_s: float = Field(default=2.0, gt=0)
    """First delay before a retry; doubles each time, with jitter."""
    retry_max_s: float = Field(default=300.0, gt=0)
    """Longest delay before a retry."""
    max_crashes: int = Field(default=3, ge=1)
    """Deaths of a stage's process, or rescues, before the stage fails with ``stage_crashed``."""
    outage_s: float = Field(default=300.0, ge=0)
    """How long a running stage is kept alive while Redis does not answer."""
    visibility_timeout_s: float = Field(default=3600.0, gt=0)
    """After this Redis delivers an unacknowledged message again; harmless, since messages are only wake-ups."""
    events_max: int = Field(default=10_000, ge=100)
    """Entries kept of one job's log."""
    events_bytes: int = Field(default=4 * 2**20, ge=2**16)
    """Memory of Redis that one job's log may take, about; beyond it the older half goes. Low: logs lose their start."""
    job_ttl_s: float = Field(default=14 * 86400.0, gt=0)
    """How long finished jobs stay in Redis."""
    failed_scratch_ttl_s: float = Field(default=2 * 86400.0, ge=0)
    """How long the scratch of failed jobs is kept for a replay."""
    label_limits: Annotated[dict[str, int], NoDecode] = Field(default_factory=dict)
    """Most stages at once per label, as JSON: ``{"team": 2}`` bounds each value of the label ``team``."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of this worker's ``/metrics`` (Prometheus). Unset: none; 0: a free one, logged. Taken: a warning."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics port listens on; metrics are readable by whoever reaches it."""
    callback_secret: SecretStr | None = Field(default=None, min_length=16)
    """Key that callbacks are signed with, the same on every worker. Unset: jobs with a ``callback_url`` are refused."""
    seal_key: SecretStr | None = Field(default=None, min_length=16)
    """Key that workers seal their records of stages with, the same on every worker; a record without its seal is not
    believed, and its stage runs again. Set it where others write to this Redis. Unset: checked, not sealed."""
    callback_allow_private: bool = False
    """Whether callbacks may go to private, loopback and link-local addresses. On: whoever submits reaches those."""
    callback_tries: int = Field(default=12, ge=1, le=100)
    """Tries to deliver one callback before it is given up."""
    callback_retry_s: float = Field(default=5.0, gt=0)
    """First delay between two tries; doubles each time, up to an hour."""
    callback_timeout_s: float = Field(default=10.0, gt=0, le=30)
    """Longest time of one try, from connecting to the end of the answer."""
    log_format: str = Field(default="console", pattern="^(console|json)$")
    """``console`` for people, ``json`` for programs: one object a line."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """Least serious of the entries that are written."""

    @field_validator("home", "scratch_dir", "templates_file", "llama_cpp_dir", "kernel_cache_dir")
    @classmethod
    def _whole_path(cls, value: Path | None) -> Path | None:
        """Absolute, so that it means the same in every process; ``~`` is what no shell has replaced."""
        return None if value is None else _absolute(value)

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _as_roots(cls, value: Any) -> Roots:
        """From the variable's text, or from directories."""
        if isinstance(value, Roots):
            return value
        parts = _split(value)
        return Roots.anywhere() if parts is None else Roots.only(*(_absolute(Path(part)) for part in parts))

    @field_validator("run_roots", mode="before")
    @classmethod
    def _as_directories(cls, value: Any) -> Any:
        return tuple(_absolute(Path(part)) for part in _split(value) or ())

    @field_validator("label_limits", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from error

    @field_validator("allowed_buckets", "gpus", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("allowed_uploads", mode="before")
    @classmethod
    def _parted_by_blanks(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise ValueError(f"lease_s ({self.lease_s}) must be at least three heartbeats ({self.heartbeat_s} s each)")
        if self.visibility_timeout_s < self.lease_s:
            raise ValueError(f"visibility_timeout_s ({self.visibility_timeout_s}) is below lease_s ({self.lease_s})")
        if self.retry_max_s < self.retry_base_s:
            raise ValueError(f"retry_max_s ({self.retry_max_s}) is below retry_base_s ({self.retry_base_s})")
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("s3_access_key and s3_secret_key go together")
        return self

    @property
    def kernels_dir(self) -> Path:
        """Where compiled kernels are kept."""
        return self.kernel_cache_dir or self.home / "kernels"

    @property
    def may_write(self) -> Roots:
        """Where anything of a job may be written: where jobs may, and the worker's own directories."""
        own = [self.home] if self.scratch_dir is None else [self.home, self.scratch_dir]
        return self.allowed_roots.also(*own)

    def storage(self) -> StorageSettings:
        """The storage part."""
        return StorageSettings(
            endpoint_url=self.s3_endpoint_url,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
            bucket=self.s3_bucket,
            prefix=self.s3_prefix,
            part_size_bytes=self.s3_part_size_bytes,
            concurrency=self.s3_concurrency,
            timeout_s=self.s3_timeout_s,
        )

    def for_stages(self) -> StageSettings:
        """The part that stages see."""
        return StageSettings(
            home=self.home,
            cache_dir=self.home / "cache",
            allowed_roots=self.allowed_roots,
            run_roots=self.run_roots,
            allowed_buckets=self.allowed_buckets,
            allowed_uploads=self.allowed_uploads,
            registry_plain_http=self.registry_plain_http,
            threads=self.threads or len(os.sched_getaffinity(0)),
            disk_reserve_bytes=self.disk_reserve_bytes,
            input_cache_bytes=self.input_cache_bytes,
            verify_load=self.verify_load,
            llama_cpp_dir=self.llama_cpp_dir,
            kernel_cache_dir=self.kernels_dir,
            storage=self.storage(),
        )


def _split(value: Any) -> Any:
    return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # "~name" of a user who does not exist
        raise ValueError(f"has an unknown home directory: {error}") from error


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings.

    Args:
        environment: Checked for misspelt names; the process's environment where not given.
        overrides: Values that win over the environment.

    Raises:
        PackagingError: ``settings_invalid``, naming the variable.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ if environment is None else environment:
        if name.startswith(PREFIX) and not name.startswith(CONSOLE_PREFIX) and name not in known:
            reason = f"unknown setting {name}{did_you_mean(nearest(name, known))}"
            raise PackagingError(ErrorCode.SETTINGS_INVALID, reason, fields={"setting": name})
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        message = f"{PREFIX}{where.upper()}: {reason}" if where else reason
        raise PackagingError(ErrorCode.SETTINGS_INVALID, message, fields={"setting": where}) from error
