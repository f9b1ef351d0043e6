"""The base model's weights under the names and in the shapes of the merged model.

A head that only the merged model has stands on the embedding it was tied to. Rows of tokens that only the merged model
knows are the merged model's: what the base would say of them nobody knows, and no text without these tokens meets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from worker.models.checkpoint import BaseModel
from worker.models.convert.weights import MergedWeights
from worker.models.imatrix.model import LazyTensor


@dataclass(frozen=True)
class _BaseTensor:
    """A tensor of the base model in the merged one's shape."""

    base: MergedWeights
    merged: LazyTensor
    name: str
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The merged model's."""
        return self.merged.shape

    def load(self) -> torch.Tensor:
        """The base model's values."""
        own = self.base.load(self.source)
        if own.shape == self.shape:
            return own
        whole = self.merged.load().clone()
        rows = min(len(own), len(whole))
        whole[:rows] = own[:rows].to(whole.dtype)
        return whole


def base_tensors(base: BaseModel, merged: MergedWeights) -> Mapping[str, LazyTensor]:
    """Every tensor of ``merged`` by name, as it is without the adapter."""
    plain = MergedWeights(base)
    entries = {name: entry for shard in merged.shards().values() for name, entry in shard.items()}
    sources = merged.sources()
    return {name: _BaseTensor(plain, entry, name, sources.get(name, name)) for name, entry in entries.items()}
