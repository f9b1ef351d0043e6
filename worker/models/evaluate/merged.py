"""The merged model, ready to be loaded layer by layer, and the converter that knows its file's layout."""

from __future__ import annotations

from dataclasses import dataclass

from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.convert.upstream import load_upstream
from worker.models.convert.weights import MergedWeights
from worker.models.imatrix.converter import open_converter
from worker.models.imatrix.model import Skeleton, best_device
from worker.models.imatrix.names import Converter
from worker.setting import WorkSetting


@dataclass(frozen=True)
class MergedModel:
    """A model and its converter.

    Attributes:
        weights: Base and overlay.
        skeleton: The model without weights, on the GPU where there is one.
        converter: Upstream's.
    """

    weights: MergedWeights
    skeleton: Skeleton
    converter: Converter

    @classmethod
    def open(cls, base: BaseModel, overlay: Overlay | None, setting: WorkSetting) -> MergedModel:
        """Read headers; no weight is loaded.

        Raises:
            PackagingError: as :class:`~worker.models.imatrix.model.Skeleton`.
        """
        weights = MergedWeights(base, overlay)
        tensors = weights.entries()
        converter = open_converter(load_upstream(setting.llama_cpp_dir), weights, setting.roots)
        skeleton = Skeleton(base.directory, tensors, best_device(), weights.config_changes())
        return cls(weights, skeleton, converter)
