"""A PEFT adapter directory, read and checked: config, tensors by module, all values finite.

Trained weights in safetensors files beside the adapter's own are tensors of the adapter like ``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from config.roots import NOWHERE_ELSE, Roots
from worker.models.adapters.beside import find_beside
from worker.models.adapters.keys import AdapterKey, is_superseded, parse_key
from worker.models.adapters.writer import NEMO_CONFIG, Writer, read_writer
from worker.models.checkpoint.base_model import CONFIG
from worker.models.checkpoint.files import read_json, resolve_member
from worker.models.checkpoint.headers import TensorEntry, read_safetensors_header
from worker.models.checkpoint.kinds import require_adapter
from worker.models.checkpoint.mapping import MappedFile, file_identity

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
        tensors: Parsed name -> entry, in file order; those of files beside the adapter come last.
        writer: Who wrote it.
        left_out: Names of files beside it that hold weights of something else, which are not read.
        weights: Its own file of tensors.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[AdapterKey, TensorEntry]
    writer: Writer
    left_out: tuple[str, ...]
    weights: Path
    _files: Mapping[Path, MappedFile]
    _allowed_roots: Roots

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
        entry = self.tensors[key]
        return self._files[entry.file].read(entry)

    def model_config(self) -> Mapping[str, Any]:
        """``config.json`` of the trained model where the trainer left one beside the adapter; else empty.

        Raises:
            PackagingError: ``adapter_invalid`` for what is no JSON object, ``path_not_allowed`` for a link elsewhere.
        """
        path = resolve_member(self.directory, CONFIG, self._allowed_roots, _INVALID)
        return read_json(path, _INVALID) if path.exists() else {}

    def is_beside(self, key: AdapterKey) -> bool:
        """Whether a tensor comes from a file beside the adapter's own."""
        return self.tensors[key].file != self.weights

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
                    f"{self.tensors[key].file}: tensor {name} holds NaN or infinite values",
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
    opened, directory = directory, require_adapter(directory, allowed_roots=allowed_roots)
    config = read_json(resolve_member(directory, ADAPTER_CONFIG, allowed_roots, _INVALID), _INVALID)
    weights = resolve_member(directory, ADAPTER_WEIGHTS, allowed_roots, _INVALID)
    beside = find_beside(opened, directory, allowed_roots)
    files = {path: MappedFile(path, file_identity(path)) for path in (weights, *beside.weights)}
    tensors = _read_names(weights, ADAPTER_WEIGHTS)
    if not tensors:
        raise PackagingError(_INVALID, f"{weights} holds no tensors: its process had none", remedy=_GATHER)
    for path, name in beside.weights.items():
        _add_names(tensors, path, name, files)
    _check_one_adapter(tensors, weights)
    nemo = {}
    if (directory / NEMO_CONFIG).exists():
        nemo = read_json(resolve_member(directory, NEMO_CONFIG, allowed_roots, _INVALID), _INVALID)
    writer = read_writer(config, nemo, str(directory))
    adapter = Adapter(directory, config, tensors, writer, beside.left_out, weights, files, allowed_roots)
    _check_gathered(adapter)
    return adapter


def _read_names(weights: Path, file_name: str) -> dict[AdapterKey, TensorEntry]:
    """The tensors of one file by parsed name, from its header.

    Raises:
        PackagingError: ``adapter_invalid``, ``adapter_unsupported`` for dtypes, ``weights_truncated``.
    """
    header = read_safetensors_header(weights, name=file_name, invalid=_INVALID)
    tensors: dict[AdapterKey, TensorEntry] = {}
    for name, entry in header.tensors.items():
        if is_superseded(name, header.tensors):
            continue
        # a file that is one module's, such as embed_tokens.safetensors, may leave its name out
        key = parse_key(name if name not in ("weight", "bias") else f"{Path(file_name).stem}.{name}")
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
    return tensors


def _add_names(
    tensors: dict[AdapterKey, TensorEntry], path: Path, file_name: str, files: Mapping[Path, MappedFile]
) -> None:
    """Add the tensors of a file beside the adapter; one that both hold must be the same in both."""
    import torch

    for key, entry in _read_names(path, file_name).items():
        mine = tensors.setdefault(key, entry)
        alike = (mine.dtype, mine.shape) == (entry.dtype, entry.shape)
        if not (alike and (mine is entry or torch.equal(files[mine.file].read(mine), files[path].read(entry)))):
            raise PackagingError(
                _INVALID,
                f"{file_name} and {mine.file_name} of the checkpoint both hold {entry.name}, with other values",
                remedy="Move away the file that is not wanted.",
                fields={"tensor": entry.name, "file": file_name},
            )


def _check_gathered(adapter: Adapter) -> None:
    """Refuse the empty tensors that a sharding trainer leaves; AdaLoRA alone prunes modules down to nothing."""
    empty = next((entry for entry in adapter.tensors.values() if not entry.size_bytes), None)
    if empty is not None and adapter.peft_type != "ADALORA":
        raise PackagingError(
            _INVALID,
            f"{empty.file}: tensor {empty.name} is empty ({list(empty.shape)}); its process had no values",
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
