"""Errors: one exception type, one stable enum of codes.

Every code belongs to a class that says what happens next::

    PackagingError
    |- refuse       the request or its input is wrong; never retried
    |- environment  this machine cannot do it (disk, memory, a missing part); elsewhere or after a person acts
    |- transient    a service did not answer; retried with backoff, bounded
    `- bug          trainpack itself is wrong; never retried, report it

The texts of each code (cause and remedy, English and Chinese) are data in ``error_catalogue``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class ErrorClass(StrEnum):
    """What happens next when an error of this class ends an attempt."""

    REFUSE = "refuse"
    ENVIRONMENT = "environment"
    TRANSIENT = "transient"
    BUG = "bug"


class ErrorCode(StrEnum):
    """Stable names of everything that can go wrong. Values never change once released."""

    # the request
    REQUEST_INVALID = "request_invalid"
    UNKNOWN_FIELD = "unknown_field"
    UNKNOWN_TEMPLATE = "unknown_template"
    TEMPLATE_LOCKED = "template_locked"
    QUANTIZE_NEEDS_EXPORT = "quantize_needs_export"
    QUANT_TYPES_NEED_QUANTIZE = "quant_types_need_quantize"
    QUANT_TYPES_EMPTY = "quant_types_empty"
    QUANT_TYPE_UNKNOWN = "quant_type_unknown"
    QUANT_TYPE_DUPLICATE = "quant_type_duplicate"
    MERGE_EXCLUDES_LORA_EXPORT = "merge_excludes_lora_export"
    CHECKPOINT_REQUIRED = "checkpoint_required"
    CHECKPOINT_NOT_ADAPTER = "checkpoint_not_adapter"
    CHECKPOINT_IS_ADAPTER = "checkpoint_is_adapter"
    NOTHING_TO_DO = "nothing_to_do"
    BASE_MODEL_REQUIRED = "base_model_required"
    OUTPUT_DIR_REQUIRED = "output_dir_required"
    TASK_NOT_PACKAGEABLE = "task_not_packageable"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    IMATRIX_REQUIRED = "imatrix_required"
    CALLBACKS_OFF = "callbacks_off"
    # jobs
    JOB_NOT_FOUND = "job_not_found"
    JOB_NEWER = "job_newer"
    JOB_RUNNING = "job_running"
    JOB_FINISHED = "job_finished"
    JOB_CANCELLED = "job_cancelled"
    JOB_FAILED = "job_failed"
    STAGE_NOT_IN_PLAN = "stage_not_in_plan"
    WAIT_TIMEOUT = "wait_timeout"
    # inputs
    PATH_NOT_ALLOWED = "path_not_allowed"
    BASE_MODEL_NOT_FOUND = "base_model_not_found"
    BASE_MODEL_INVALID = "base_model_invalid"
    BASE_MODEL_QUANTIZED = "base_model_quantized"
    WEIGHTS_PICKLED = "weights_pickled"
    WEIGHTS_TRUNCATED = "weights_truncated"
    WEIGHTS_SHARD_MISSING = "weights_shard_missing"
    WEIGHTS_NOT_FINITE = "weights_not_finite"
    TOKENIZER_NOT_FOUND = "tokenizer_not_found"
    TOKENIZER_UNSUPPORTED = "tokenizer_unsupported"
    VOCABULARY_MISMATCH = "vocabulary_mismatch"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    CHECKPOINT_NOT_FOUND = "checkpoint_not_found"
    CHECKPOINTS_EMPTY = "checkpoints_empty"
    ADAPTER_INVALID = "adapter_invalid"
    ADAPTER_MISMATCH = "adapter_mismatch"
    ADAPTER_UNSUPPORTED = "adapter_unsupported"
    ADAPTER_NOT_FINITE = "adapter_not_finite"
    IMATRIX_INVALID = "imatrix_invalid"
    IMATRIX_MISMATCH = "imatrix_mismatch"
    CALIBRATION_TOO_SHORT = "calibration_too_short"
    GGUF_INVALID = "gguf_invalid"
    GGUF_ALREADY_QUANTIZED = "gguf_already_quantized"
    # outputs
    OUTPUT_EXISTS = "output_exists"
    OUTPUT_DIR_NOT_WRITABLE = "output_dir_not_writable"
    OUTPUT_DOES_NOT_LOAD = "output_does_not_load"
    # the machine
    DISK_SPACE_INSUFFICIENT = "disk_space_insufficient"
    OUT_OF_MEMORY = "out_of_memory"
    DEPENDENCY_MISSING = "dependency_missing"
    STAGE_CRASHED = "stage_crashed"
    STAGE_TIMEOUT = "stage_timeout"
    SETTINGS_INVALID = "settings_invalid"
    SERVICE_START_FAILED = "service_start_failed"
    ARTIFACT_LOST = "artifact_lost"
    # services
    REDIS_UNREACHABLE = "redis_unreachable"
    STORAGE_UNREACHABLE = "storage_unreachable"
    STORAGE_DENIED = "storage_denied"
    DOWNLOAD_FAILED = "download_failed"
    UPLOAD_FAILED = "upload_failed"
    WORKER_LOST = "worker_lost"
    CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
    # the console
    UNAUTHENTICATED = "unauthenticated"
    TOKEN_EXPIRED = "token_expired"
    PERMISSION_DENIED = "permission_denied"
    CSRF_FAILED = "csrf_failed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    ADDRESS_NOT_FOUND = "address_not_found"
    OUTPUT_NOT_FOUND = "output_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    RATE_LIMITED = "rate_limited"
    QUESTION_UNANSWERED = "question_unanswered"
    # trainpack itself
    INTERNAL_ERROR = "internal_error"


class PackagingError(Exception):
    """The one error that users, producers and operators see.

    Args:
        code: Stable code; decides the class and thereby whether the attempt is retried.
        message: The fact, naming the file or value (``needed 31.2 GB, free 12.0 GB``).
        remedy: What to do about it; the catalogue's remedy where not given.
        fields: Facts for machines; JSON values only.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        remedy: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = ErrorCode(code)
        self.message = message
        self.remedy = remedy if remedy is not None else default_remedy(self.code)
        self.fields: dict[str, Any] = dict(fields or {})

    @property
    def error_class(self) -> ErrorClass:
        """Class of the code: what happens next."""
        from api_client.error_catalogue import CATALOGUE

        return CATALOGUE[self.code].error_class

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed with nothing changed."""
        return self.error_class is ErrorClass.TRANSIENT

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as printed with ``--json`` and stored with a failed job."""
        return {"code": self.code.value, "message": self.message, "remedy": self.remedy, "fields": self.fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PackagingError:
        """Inverse of :meth:`to_dict`; a code this version does not know becomes ``internal_error``."""
        try:
            code = ErrorCode(data["code"])
        except ValueError:
            code = ErrorCode.INTERNAL_ERROR
        return cls(code, str(data["message"]), remedy=data.get("remedy"), fields=data.get("fields"))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.to_dict(),))

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


def _rebuild(data: dict[str, Any]) -> PackagingError:
    return PackagingError.from_dict(data)


def default_remedy(code: ErrorCode) -> str:
    """English remedy of a code, from the catalogue."""
    from api_client.error_catalogue import CATALOGUE

    return CATALOGUE[code].remedy_en
