"""Adapters: from a PEFT directory to an overlay over the base model's tensors.

Reading order: ``adapter`` (files) and ``keys`` (names) -> ``lora`` (which tensor changes which) -> ``tying`` ->
``overlay`` (the file) and ``updates`` (the arithmetic, dtype step by dtype step). ``export`` is the way to a LoRA file
instead.
"""

from worker.models.adapters.adapter import Adapter, open_adapter
from worker.models.adapters.build import build_overlay
from worker.models.adapters.export import LoraPair, normalise_for_export
from worker.models.adapters.overlay import Overlay, OverlaySummary

__all__ = ["Adapter", "LoraPair", "Overlay", "OverlaySummary", "build_overlay", "normalise_for_export", "open_adapter"]
