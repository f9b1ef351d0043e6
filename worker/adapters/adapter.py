"""A PEFT adapter directory, read and checked: config, tensors by module, all values finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.errors import ErrorCode, PackagingError
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from config.roots import NOWHERE_ELSE, Roots
from worker.adapters.keys import AdapterKey, is_superseded, parse_key
from worker.adapters.writer import NEMO_CONFIG, Writer, read_writer
from worker.checkpoint.files import read_json, resolve_member
from worker.checkpoint.headers import TensorEntry, read_safetensors_header
from worker.checkpoint.kinds import require_adapter
from worker.checkpoint.mapping import MappedFile, file_identity

if TYPE_CHECKING:
    import torch

_INVALID = ErrorCode.ADAPTER_INVALID
_GATHER = (
    "Package an earlier checkpoint, or save the adapter with its parameters gathered (DeepSpeed ZeRO-3: "
    "stage3_gather_16bit_weights_on_model_save)."
)
_FINITE_CHECK_ELEMENTS = 1 << 24  # bounds the boolean mask of the finiteness check


@dataclass(frozen=True)
class Adapter:
    """An adapter's files.

    Attributes:
        directory: Where its two files lie.
        config: ``adapter_config.json``.
        tensors: Parsed name -> entry, in file order.
        writer: Who wrote it.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[AdapterKey, TensorEntry]
    writer: Writer
    _data: MappedFile

    @property
    def peft_type(self) -> str:
        """Upper-case method name; adapters older than the key are LoRA."""
        value = self.config.get("peft_type", "LORA")
        return str(value).upper()

    @property
    def base_name(self) -> str:
        """``base_model_name_or_path`` as written, empty where there is none; may be a local path of the trainer."""
        value = self.config.get("base_model_name_or_path")
        return value if isinstance(value, str) else ""

    def read(self, key: AdapterKey) -> torch.Tensor:
        """Map one tensor in its stored dtype."""
        return self._data.read(self.tensors[key])

    def check_finite(self, key: AdapterKey) -> torch.Tensor:
        """Map one tensor after a look at all its values.

        Raises:
            PackagingError: ``adapter_not_finite``, naming the tensor.
        """
        import torch

        tensor = self.read(key)
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), _FINITE_CHECK_ELEMENTS):
            if not torch.isfinite(flat[start : start + _FINITE_CHECK_ELEMENTS]).all():
                name = self.tensors[key].name
                raise PackagingError(
                    ErrorCode.ADAPTER_NOT_FINITE,
                    f"{self.directory / ADAPTER_WEIGHTS}: tensor {name} holds NaN or infinite values",
                    fields={"tensor": name},
                )
        return tensor


def open_adapter(directory: Path, *, allowed_roots: Roots = NOWHERE_ELSE) -> Adapter:
    """Open the adapter in ``directory`` (or in its ``adapter_model/``) from headers only.

    Raises:
        PackagingError: ``checkpoint_not_found``, ``checkpoint_not_adapter``, ``weights_pickled``,
            ``weights_truncated``, ``adapter_invalid``, ``path_not_allowed``, and ``adapter_unsupported`` for several
            adapters in one file.
    """
    directory = require_adapter(directory, allowed_roots=allowed_roots)
    config = read_json(resolve_member(directory, ADAPTER_CONFIG, allowed_roots, _INVALID), _INVALID)
    weights = resolve_member(directory, ADAPTER_WEIGHTS, allowed_roots, _INVALID)
    identity = file_identity(weights)
    header = read_safetensors_header(weights, invalid=_INVALID)
    tensors: dict[AdapterKey, TensorEntry] = {}
    for name, entry in header.tensors.items():
        if is_superseded(name, header.tensors):
            continue
        key = parse_key(name)
        if key in tensors:
            raise PackagingError(_INVALID, f"{weights}: {name} and {tensors[key].name} name the same tensor")
        if entry.dtype not in ("F64", "F32", "F16", "BF16", "I32", "I64"):  # integers: where sparse methods act
            raise PackagingError(
                ErrorCode.ADAPTER_UNSUPPORTED,
                f"{weights}: tensor {name} has dtype {entry.dtype}",
                remedy="Save the adapter in float32, bfloat16 or float16.",
                fields={"feature": entry.dtype, "tensor": name},
            )
        tensors[key] = entry
    if not tensors:
        raise PackagingError(_INVALID, f"{weights} holds no tensors: its process had none", remedy=_GATHER)
    _check_one_adapter(tensors, weights)
    nemo = {}
    if (directory / NEMO_CONFIG).exists():
        nemo = read_json(resolve_member(directory, NEMO_CONFIG, allowed_roots, _INVALID), _INVALID)
    writer = read_writer(config, nemo, str(directory))
    adapter = Adapter(directory, config, tensors, writer, MappedFile(weights, identity))
    _check_gathered(adapter, weights)
    return adapter


def _check_gathered(adapter: Adapter, weights: Path) -> None:
    """Refuse the empty tensors that a sharding trainer leaves; AdaLoRA alone prunes modules down to nothing."""
    empty = next((entry for entry in adapter.tensors.values() if not entry.size_bytes), None)
    if empty is not None and adapter.peft_type != "ADALORA":
        raise PackagingError(
            _INVALID,
            f"{weights}: tensor {empty.name} is empty ({list(empty.shape)}); the process that saved it had no values",
            remedy=_GATHER,
            fields={"tensor": empty.name},
        )


def _check_one_adapter(tensors: Mapping[AdapterKey, TensorEntry], weights: Path) -> None:
    names = sorted({key.adapter_name for key in tensors if key.adapter_name})
    if len(names) > 1:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{weights} holds several adapters: {', '.join(names[:5])}",
            remedy="Save the adapter that is wanted alone: `save_pretrained(..., selected_adapters=[NAME])`.",
            fields={"feature": "several adapters", "adapters": names[:20]},
        )
