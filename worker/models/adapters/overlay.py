"""The overlay: one small safetensors file that says how base tensors become merged ones.

Layout of the file (format 1): numbered tensors; metadata ``trainpack.overlay`` = ``1``, ``base_fingerprint``,
``precision``, ``steps`` (a JSON list of ``target``, ``source``, ``kind``, ``region``, ``parts``, ``settings`` in the
order in which they apply; ``parts`` names tensors), ``config_changes`` and ``added`` (JSON objects). ``target`` is the
tensor's name in the merged model; ``source`` the base tensor that its steps start from, another one only for tensors
that the base does not have (an untied head).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.expert_linears import ExpertLinearsUpdate
from worker.models.adapters.low_rank import ExpertsUpdate, LoraUpdate
from worker.models.adapters.peft_update import PeftUpdate
from worker.models.adapters.updates import (
    BiasUpdate,
    CopyUpdate,
    Precision,
    ReplaceUpdate,
    RowsUpdate,
    TruncateUpdate,
    Update,
)
from worker.models.checkpoint.base_model import BaseModel
from worker.models.checkpoint.headers import read_safetensors_header
from worker.models.checkpoint.mapping import MappedFile, file_identity
from worker.models.checkpoint.writer import write_safetensors

if TYPE_CHECKING:
    import torch

FORMAT = "1"
_FORMAT_KEY = "trainpack.overlay"
# kind of a step -> class of its update, for those that are restored from parts and settings alone
_KINDS: Mapping[str, type[Any]] = {
    "lora": LoraUpdate,
    "experts": ExpertsUpdate,
    "expert_linears": ExpertLinearsUpdate,
    "bias": BiasUpdate,
    "replace": ReplaceUpdate,
    "rows": RowsUpdate,
    "truncate": TruncateUpdate,
    "copy": CopyUpdate,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One update of one tensor of the merged model, or of the rows ``region`` of it."""

    target: str
    source: str
    update: Update
    kind: str
    region: tuple[int, int] | None = None

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor after the step: only vocabularies change it."""
        if self.region is None and isinstance(self.update, ReplaceUpdate):
            return tuple(self.update.value.shape)
        return (self.update.rows, *shape[1:]) if isinstance(self.update, TruncateUpdate) else shape

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """The update on the whole tensor, or on the rows of ``region`` only."""
        import torch

        if self.region is None:
            return self.update.apply(tensor, precision)
        start, stop = self.region
        merged = tensor.to(torch.float32, copy=True) if precision == "f32" else tensor.clone()
        merged[start:stop] = self.update.apply(tensor[start:stop], precision)
        return merged


@dataclass(frozen=True)
class OverlaySummary:
    """What an overlay does, for logs and the manifest.

    Attributes:
        path: The overlay file.
        size_bytes: Its size.
        touched: How many tensors of the merged model differ from the base.
        added: Names of tensors that the base does not have.
        steps: Number of updates by kind.
        config_changes: Changes that the merged model's ``config.json`` needs.
        notes: Sentences worth telling the user.
    """

    path: Path
    size_bytes: int
    touched: int
    added: tuple[str, ...]
    steps: Mapping[str, int]
    config_changes: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overlay:
    """Loaded overlay. ``apply`` is pure and thread-safe; factors stay mapped from the file until they are used."""

    path: Path
    base_fingerprint: str
    precision: Precision
    _steps: Mapping[str, Sequence[Step]] = field(repr=False)
    _config_changes: Mapping[str, Any] = field(repr=False)
    _added: Mapping[str, str] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Overlay:
        """Map an overlay file.

        Raises:
            PackagingError: ``artifact_lost`` where the file is missing, cut short or of another format.
        """
        try:
            header = read_safetensors_header(path, invalid=ErrorCode.ARTIFACT_LOST)
            if header.metadata.get(_FORMAT_KEY) != FORMAT:
                raise PackagingError(ErrorCode.ARTIFACT_LOST, f"{path} is not an overlay of format {FORMAT}")
            data = MappedFile(path, file_identity(path))
            tensors = {name: data.read(entry) for name, entry in header.tensors.items()}
            steps = [_step(item, tensors) for item in json.loads(header.metadata["steps"])]
            changes = json.loads(header.metadata["config_changes"])
            added = json.loads(header.metadata["added"])
            precision, fingerprint = header.metadata["precision"], header.metadata["base_fingerprint"]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise PackagingError(ErrorCode.ARTIFACT_LOST, f"{path} is not a whole overlay") from error
        except PackagingError as error:
            raise PackagingError(ErrorCode.ARTIFACT_LOST, error.message) from error
        return cls(path, fingerprint, "f32" if precision == "f32" else "base", _grouped(steps), changes, added)

    def names(self) -> frozenset[str]:
        """Base tensors whose merged value differs."""
        return frozenset(name for name in self._steps if name not in self._added)

    def added(self) -> dict[str, str]:
        """Tensors that the base does not have -> the base tensor whose data ``apply`` starts from."""
        return dict(self._added)

    def config_changes(self) -> dict[str, Any]:
        """Keys of ``config.json`` that the merged model needs changed, dotted where nested."""
        return dict(self._config_changes)

    def check_base(self, base: BaseModel) -> None:
        """Refuse a base that is not the one the overlay was built for.

        Raises:
            PackagingError: ``adapter_mismatch``.
        """
        if base.fingerprint != self.base_fingerprint:
            raise PackagingError(
                ErrorCode.ADAPTER_MISMATCH, f"{self.path} was made for another base model than {base.directory}"
            )

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The merged value of tensor ``name``.

        Args:
            name: Name of a base tensor, or one of :meth:`added`.
            tensor: The base tensor in its own dtype; for an added name, the base tensor that :meth:`added` gives. It is
                not written to. The arithmetic runs on its device; a meta tensor gives the result's shape and dtype.

        Returns:
            ``tensor`` itself where the overlay does not touch it; else a new contiguous tensor, of the same dtype for
            precision ``base``, float32 for ``f32``.
        """
        import torch

        steps = self._steps.get(name, ())
        if tensor.is_meta:
            return self._shape_only(steps, tensor)
        with torch.no_grad():
            for step in steps:
                tensor = step.apply(tensor, self.precision)
        return tensor.contiguous() if steps else tensor

    def _shape_only(self, steps: Sequence[Step], tensor: torch.Tensor) -> torch.Tensor:
        """What ``apply`` makes of a tensor without data: shape and dtype, at no cost."""
        import torch

        shape = tuple(tensor.shape)
        for step in steps:
            shape = step.shape_after(shape)
        dtype = torch.float32 if steps and self.precision == "f32" else tensor.dtype
        return torch.empty(shape, dtype=dtype, device="meta")


def write_overlay(
    path: Path,
    steps: Sequence[Step],
    base: BaseModel,
    *,
    precision: Precision,
    config_changes: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> OverlaySummary:
    """Write an overlay file: under a temporary name, synced, then renamed; nothing is left after an error."""
    added = {step.target: step.source for step in steps if step.target not in base.tensors}
    stored: dict[tuple[object, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    described = [_described(step, stored, tensors) for step in steps]
    metadata = {
        _FORMAT_KEY: FORMAT,
        "base_fingerprint": base.fingerprint,
        "precision": precision,
        "steps": json.dumps(described),
        "config_changes": json.dumps(dict(config_changes)),
        "added": json.dumps(added),
    }
    size_bytes = write_safetensors(path, tensors, metadata)
    return OverlaySummary(
        path=path,
        size_bytes=size_bytes,
        touched=len({step.target for step in steps}),
        added=tuple(added),
        steps=dict(Counter(step.kind for step in steps)),
        config_changes=dict(config_changes),
        notes=tuple(notes),
    )


def _described(step: Step, stored: dict[tuple[object, ...], str], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A step's entry in the metadata; its tensors go to ``tensors``, one that several steps share only once."""
    parts = {}
    for part, tensor in step.update.tensors().items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        name = stored.setdefault(identity, str(len(stored)))
        tensors.setdefault(name, tensor)
        parts[part] = name
    return {
        "target": step.target,
        "source": step.source,
        "kind": step.kind,
        "region": step.region,
        "parts": parts,
        "settings": step.update.settings(),
    }


def _step(item: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Step:
    parts = {part: tensors[name] for part, name in item["parts"].items()}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in item["settings"].items()}
    update: Update = (
        PeftUpdate.restored(parts, settings) if item["kind"] == "peft" else _KINDS[item["kind"]](**parts, **settings)
    )
    region = item["region"]
    return Step(item["target"], item["source"], update, item["kind"], None if region is None else tuple(region))


def _grouped(steps: Sequence[Step]) -> dict[str, list[Step]]:
    by_target: dict[str, list[Step]] = {}
    for step in steps:
        by_target.setdefault(step.target, []).append(step)
    return by_target
