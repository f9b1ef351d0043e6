"""Kinds of log entries. A stage's row in ``stages`` names the kind of its own."""

from __future__ import annotations

from enum import StrEnum


class EventKind(StrEnum):
    """Kind of an event. The first four are the log kinds that people know from the training console."""

    MERGE_LORA = "Merge LoRA"
    GGUF_CONVERSION = "GGUF conversion"
    QUANTIZATION = "Quantization"
    COMMAND_SUCCESS = "Command success"
    PREPARE = "Prepare"
    IMPORTANCE_MATRIX = "Importance matrix"
    SENSITIVITY = "Sensitivity"
    LORA_EXPORT = "LoRA export"
    VERIFY = "Verify"
    EVALUATION = "Evaluation"
    PUBLISH = "Publish"
    PROGRESS = "Progress"
    JOB = "Job"
    """The job's own life: submitted, attempts started, retried, rescued, cancelled, finished."""
    TRUNCATED = "Truncated"
    """Stands first where older entries of a long log were dropped."""
