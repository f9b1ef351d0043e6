"""The weights as the conversion package sees them: the base model's tensors with the overlay applied, one at a time.

Upstream reads each shard through ``gguf.utility.SafetensorsLocal`` and takes from it objects with a dtype, a shape and
a way to the bytes. :class:`WeightEntry` is such an object; its bytes are merged only when somebody asks for them.
Shapes and dtypes are known from headers (the overlay is asked with a meta tensor), so upstream can plan the whole
file without a tensor being read. Next: ``plan``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from worker.models.adapters.names import is_embedding, is_head
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.checkpoint.base_model import torch_dtypes

if TYPE_CHECKING:
    import numpy as np
    import torch


class WeightEntry:
    """One tensor, not read yet. Stands in for upstream's ``LocalTensor``.

    Attributes:
        name: Name in the base model (or the name the overlay adds).
        dtype: Safetensors dtype name.
        shape: Dimensions, outermost first.
    """

    __slots__ = ("_load", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], load: Callable[[str], torch.Tensor]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._load = load

    def load(self) -> torch.Tensor:
        """The merged tensor."""
        return self._load(self.name)

    def mmap_bytes(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The merged tensor's bytes; upstream's name for it, used where upstream wants values while it plans."""
        import torch

        flat: np.ndarray[Any, np.dtype[np.uint8]] = self.load().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat


class MergedWeights:
    """All tensors of base model and overlay.

    Args:
        base: The base model.
        overlay: The adapter's normalised updates, or None to convert the base as it is.
        rows: Say that embedding and head have this many rows; for planning without the overlay that resizes them, since
            such tensors cannot be read.

    Raises:
        PackagingError: ``adapter_mismatch`` where the overlay was made for another base.
    """

    def __init__(self, base: BaseModel, overlay: Overlay | None = None, *, rows: int | None = None) -> None:
        if overlay is not None:
            overlay.check_base(base)
        self.base = base
        self._overlay = overlay
        self._updated = overlay.names() if overlay is not None else frozenset()
        self._added = overlay.added() if overlay is not None else {}
        self._rows = rows
        self._shared = SharedTensors(())

    def shards(self) -> dict[str, dict[str, WeightEntry]]:
        """Shard file name -> its entries, both sorted, as upstream reads them. Added tensors are in the last shard."""
        shards: dict[str, dict[str, WeightEntry]] = {}
        for name, entry in self.base.tensors.items():
            if name not in self.base.unconverted:
                shards.setdefault(entry.file_name, {})[name] = self._entry(name, name)
        for name, source in self._added.items():
            shards[max(shards)][name] = self._entry(name, source)
        return {file: dict(sorted(shards[file].items())) for file in sorted(shards)}

    def entries(self) -> dict[str, WeightEntry]:
        """Name -> tensor, over all shards."""
        return {name: entry for shard in self.shards().values() for name, entry in shard.items()}

    def names(self) -> set[str]:
        """Names of all tensors of the merged model, but for those that the base has unconverted."""
        return {*self.base.tensors, *self._added} - self.base.unconverted

    def sources(self) -> dict[str, str]:
        """Tensors that only the merged model has -> the base model's tensor that each is made of."""
        return dict(self._added)

    def changed(self) -> frozenset[str]:
        """Names of the tensors that the overlay changes or adds."""
        return self._updated | frozenset(self._added)

    def alters(self, name: str) -> bool:
        """Whether an update changes any value of a tensor; reads it. LoRA leaves what it could not train as it was."""
        if self._overlay is None or name in self._added:
            return name in self._added
        before = self.base.read_tensor(name)
        after = self._overlay.apply(name, before)
        return before.shape != after.shape or bool((before.float() != after.float()).any())

    def config_changes(self) -> dict[str, Any]:
        """Changes that the merged model's ``config.json`` needs, dotted where nested."""
        return {} if self._overlay is None else self._overlay.config_changes()

    def share(self, uses: Iterable[str]) -> None:
        """Keep a tensor in memory between its uses, where ``uses`` names it more than once (a fused tensor cut up)."""
        self._shared = SharedTensors(uses)

    def load(self, name: str) -> torch.Tensor:
        """The merged tensor; counts as one of its uses. Thread-safe."""
        return self._shared.get(name, self._compute)

    def _compute(self, name: str) -> torch.Tensor:
        tensor = self.base.read_tensor(self._added.get(name, name))
        if self._overlay is None or not (name in self._updated or name in self._added):
            return tensor
        return self._overlay.apply(name, tensor)

    def _entry(self, name: str, source: str) -> WeightEntry:
        import torch

        header = self.base.tensors[source]
        dtype, shape = header.dtype, header.shape
        if self._overlay is not None and (name in self._updated or name in self._added):
            dtypes = torch_dtypes()
            merged = self._overlay.apply(name, torch.empty(shape, dtype=dtypes[dtype], device="meta"))
            dtype = next(key for key, value in dtypes.items() if value == merged.dtype)
            shape = tuple(merged.shape)
        if self._rows is not None and len(shape) == 2 and (is_embedding(name) or is_head(name)):
            shape = (self._rows, shape[1])
        return WeightEntry(name, dtype, shape, self.load)


class SharedTensors:
    """Computes a tensor once where several are made of it, and lets go of it after its last use.

    Args:
        uses: The name of every use to come, with repetition. Names not in it are computed every time.
    """

    def __init__(self, uses: Iterable[str]) -> None:
        self._left = Counter(uses)
        self._kept: dict[str, torch.Tensor] = {}
        self._locks = {name: threading.Lock() for name, count in self._left.items() if count > 1}

    def get(self, name: str, compute: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor; one use less is left of it."""
        lock = self._locks.get(name)
        if lock is None:
            return compute(name)
        with lock:
            tensor = self._kept.get(name)
            if tensor is None:
                tensor = compute(name)
            self._left[name] -= 1
            if self._left[name] > 0:
                self._kept[name] = tensor
            else:
                self._kept.pop(name, None)
            return tensor
