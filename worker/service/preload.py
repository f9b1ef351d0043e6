"""What the fork server loads once, so that a stage's process starts in milliseconds. The worker never loads it."""

from __future__ import annotations

import contextlib
import importlib

from worker.models.heap import keep_freed_memory
from worker.stages.registry import STAGES

MODULES = (
    "worker.service.supervisor.child",
    "torch",
    "safetensors.torch",
    "transformers.models.auto.tokenization_auto",
    "transformers.convert_slow_tokenizer",
    "transformers.modeling_utils",
    "libgguf",
    "llvmlite",
)


def load() -> None:
    """Import everything heavy and the stages; what is not installed is left for the stage that needs it to report."""
    keep_freed_memory()  # processes that are forked later inherit it
    stages = (function.partition(":")[0] for stage, function in STAGES.items() if stage.spec.preloaded)
    for name in (*MODULES, *stages):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        from worker.models.convert.upstream import load_upstream

        load_upstream()


load()
