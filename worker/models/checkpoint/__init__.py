"""Hugging Face directories read from headers only: base models and checkpoints, hostile until shown otherwise.

Reading order: ``headers`` (one safetensors file), ``files`` (which files a directory may name), ``base_model``
(a directory as one map of tensors), ``kinds`` (is a checkpoint an adapter or full weights). Nothing here unpickles,
runs code of a model directory, or reads more than headers until ``BaseModel.read_tensor`` is called.
"""

from worker.models.checkpoint.base_model import BaseModel, open_base_model
from worker.models.checkpoint.headers import SafetensorsHeader, TensorEntry, read_safetensors_header
from worker.models.checkpoint.kinds import CheckpointLayout, classify_checkpoint

__all__ = [
    "BaseModel",
    "CheckpointLayout",
    "SafetensorsHeader",
    "TensorEntry",
    "classify_checkpoint",
    "open_base_model",
    "read_safetensors_header",
]
