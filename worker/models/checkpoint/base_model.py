"""A Hugging Face directory as one map of tensors.

``open_base_model`` reads ``config.json``, the weight index if there is one, and the header of every shard; a 70B model
costs a few megabytes. ``BaseModel.read_tensor`` maps the bytes of one tensor, so resident memory is that of the
tensors still referenced, whatever the size of the model. Weights that lie there quantized are shown as the plain ones
that transformers makes of them (``dequantize``), and made when they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.kinds import PICKLE_SUFFIXES
from config.roots import NOWHERE_ELSE, Roots
from worker.models.checkpoint.bitsandbytes import RoundTrip
from worker.models.checkpoint.dequantize import DEQUANTIZED_BY_CONVERTER, quant_method, unpack
from worker.models.checkpoint.files import read_json, resolve_member
from worker.models.checkpoint.headers import SafetensorsHeader, TensorEntry, read_safetensors_header
from worker.models.checkpoint.kinds import refuse_shards
from worker.models.checkpoint.mapping import StoredTensors, file_identity, torch_dtypes
from worker.models.checkpoint.unpacking import WeightRecipe

__all__ = ["BaseModel", "open_base_model", "torch_dtypes"]

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INVALID = ErrorCode.BASE_MODEL_INVALID
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class BaseModel:
    """A base model: its config and where each tensor lies.

    Attributes:
        directory: As given.
        config: ``config.json``; of weights made plain, without ``quantization_config``.
        tensors: Tensor name -> entry, in file order.
        quant_method: ``quantization_config.quant_method`` where the weights are left quantized, else None.
        made_plain_from: That method where they were quantized and are shown as plain ones.
        rounded_as: How weights were rounded to 4 bits and back, ``nf4`` or ``nf4_nested``; None where they were not.
        fingerprint: Hex digest over config and all headers; the same for copies of a model, not over its data.
        unconverted: Names of tensors that no file is to be made of, though they are there.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    quant_method: str | None
    fingerprint: str
    _stored: StoredTensors = field(repr=False)
    made_plain_from: str | None = None
    rounded_as: str | None = None
    unconverted: frozenset[str] = frozenset()
    _recipes: Mapping[str, WeightRecipe] = field(default_factory=dict, repr=False)

    @property
    def model_type(self) -> str:
        """``model_type`` of the config, empty where it has none."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the config: ``text_config`` where there is one, else the config itself."""
        value = self.config.get("text_config")
        return value if isinstance(value, dict) else self.config

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size_bytes for entry in self.tensors.values())

    def made_dtypes(self) -> frozenset[str]:
        """Safetensors names of the dtypes of weights that are quantized in the files."""
        return frozenset(self.tensors[name].dtype for name in self._recipes)

    def rounded(self, names: Iterable[str], *, nested: bool) -> BaseModel:
        """The same model with the weights ``names`` as training in NF4 saw them.

        Args:
            names: Weights to round.
            nested: Their scales are rounded, too.
        """
        recipes = {name: RoundTrip(name, self._recipes.get(name), "nf4", nested) for name in sorted(names)}
        rounded_as = "nf4_nested" if nested else "nf4"
        described = f"{self.fingerprint} {rounded_as} {' '.join(recipes)}"
        return replace(
            self,
            fingerprint=hashlib.sha256(described.encode()).hexdigest(),
            rounded_as=rounded_as,
            _recipes={**self._recipes, **recipes},
        )

    def with_tensors_of(self, donor: BaseModel, names: Iterable[str], config: Mapping[str, Any]) -> BaseModel:
        """The same model with tensors of another one, as if they lay in its own last weight file.

        Args:
            donor: The other model, its weights plain.
            names: Which of its tensors; none that this model has itself.
            config: ``config.json`` of the result.
        """
        last = max(entry.file_name for entry in self.tensors.values())
        taken = {name: replace(donor.tensors[name], file_name=last) for name in sorted(names)}
        described = f"{self.fingerprint} {donor.fingerprint} {json.dumps(config, sort_keys=True)} {' '.join(taken)}"
        return replace(
            self,
            config=config,
            tensors={**self.tensors, **taken},
            fingerprint=hashlib.sha256(described.encode()).hexdigest(),
            _stored=self._stored.beside(donor._stored),
            _recipes={**{name: recipe for name, recipe in donor._recipes.items() if name in taken}, **self._recipes},
        )

    def read_tensor(self, name: str) -> torch.Tensor:
        """Map one tensor. Thread-safe; no copy is made, and the mapping ends with the last reference to the tensor.

        A weight that is quantized in the file is made anew each time. The pages are private to this process: writing to
        the tensor changes neither the file nor another mapping of it.

        Raises:
            PackagingError: ``base_model_invalid`` for an unknown name, a dtype torch lacks, or a file that changed
                after it was opened.
        """
        if name not in self.tensors:
            raise PackagingError(_INVALID, f"{self.directory} has no tensor {name!r}")
        recipe = self._recipes.get(name)
        return recipe.make(self._stored.read) if recipe else self._stored.read(name)

    def check_unchanged(self) -> None:
        """Refuse a model that somebody has written to since it was opened.

        Raises:
            PackagingError: ``base_model_invalid`` naming the file.
        """
        self._stored.check_unchanged()


def open_base_model(directory: Path, *, allowed_roots: Roots = NOWHERE_ELSE, as_stored: bool = False) -> BaseModel:
    """Open a base model from headers only (and the few bytes that describe each 4-bit weight of bitsandbytes).

    Args:
        directory: Hugging Face directory with ``config.json`` and safetensors weights, single or sharded.
        allowed_roots: Where symlinks inside the directory may lead besides the directory itself.
        as_stored: Leave weights quantized where the converter turns them back into floats by itself
            (``DEQUANTIZED_BY_CONVERTER``), so that its file is upstream's; an adapter cannot be merged into them.

    Raises:
        PackagingError: ``base_model_not_found``, ``base_model_invalid``, ``base_model_quantized``, ``weights_pickled``,
            ``weights_truncated``, ``weights_shard_missing``, ``path_not_allowed``.
    """
    if not directory.is_dir():
        raise PackagingError(ErrorCode.BASE_MODEL_NOT_FOUND, f"{directory} is not a directory")
    if not (directory / CONFIG).exists():
        refuse_shards(directory, [entry.name for entry in directory.iterdir()], _INVALID)
        raise PackagingError(_INVALID, f"{directory} has no {CONFIG}")
    config = read_json(resolve_member(directory, CONFIG, allowed_roots, _INVALID), _INVALID)
    shards, weight_map = _shard_names(directory, allowed_roots)
    headers = [_read_shard(directory, name, allowed_roots) for name in shards]
    tensors = _collect(zip(shards, headers, strict=True), weight_map, directory)
    stored = StoredTensors(tensors, {header.path: file_identity(header.path) for header in headers})
    method = quant_method(config, tensors)
    fingerprint = _fingerprint(config, tensors)
    recipes: dict[str, WeightRecipe] = {}
    left = as_stored and method in DEQUANTIZED_BY_CONVERTER
    if method is not None and not left:
        config, tensors, recipes = unpack(directory, method, config, stored)
        fingerprint = hashlib.sha256(f"{fingerprint} made plain".encode()).hexdigest()
    return BaseModel(
        directory=directory,
        config=config,
        tensors=tensors,
        quant_method=method if left else None,
        fingerprint=fingerprint,
        _stored=stored,
        made_plain_from=None if left else method,
        _recipes=recipes,
    )


def _shard_names(directory: Path, allowed_roots: Roots) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files and, where there is an index, its map from tensor to file."""
    if (directory / SINGLE).exists():
        return [SINGLE], None
    if (directory / INDEX).exists():
        weight_map = _weight_map(resolve_member(directory, INDEX, allowed_roots, _INVALID))
        return sorted(set(weight_map.values())), weight_map
    names = sorted(entry.name for entry in directory.iterdir())
    shards = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    if shards:
        _check_numbering(directory, shards)
        return shards, None
    refuse_shards(directory, names, _INVALID)
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES) and name != "training_args.bin"]
    if pickles:
        raise PackagingError(
            ErrorCode.WEIGHTS_PICKLED, f"{directory} holds only pickled weights: {', '.join(pickles[:3])}"
        )
    raise PackagingError(_INVALID, f"{directory} has no model*.safetensors weights")


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path, _INVALID).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PackagingError(_INVALID, f"{path} has no weight_map")
    if not all(isinstance(name, str) and name.endswith(".safetensors") for name in weight_map.values()):
        raise PackagingError(_INVALID, f"{path}: the weight_map names files that are not safetensors")
    return weight_map


def _check_numbering(directory: Path, shards: Sequence[str]) -> None:
    """Shards without an index must be complete by their own numbers."""
    numbered = [match for name in shards if (match := _SHARD.fullmatch(name))]
    if not numbered:
        return
    total = int(numbered[0][2])
    present = {int(match[1]) for match in numbered}
    missing = next((number for number in range(1, total + 1) if number not in present), None)
    if missing is not None:
        name = f"model-{missing:05d}-of-{total:05d}.safetensors"
        raise PackagingError(ErrorCode.WEIGHTS_SHARD_MISSING, f"{directory} lacks {name}", fields={"shard": name})


def _read_shard(directory: Path, name: str, allowed_roots: Roots) -> SafetensorsHeader:
    path = resolve_member(directory, name, allowed_roots, _INVALID)
    if not path.exists():
        raise PackagingError(
            ErrorCode.WEIGHTS_SHARD_MISSING,
            f"{directory / INDEX} names {name}, which is missing",
            fields={"shard": name},
        )
    return read_safetensors_header(path, name=name)


def _collect(
    shards: Iterable[tuple[str, SafetensorsHeader]], weight_map: Mapping[str, str] | None, directory: Path
) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for shard, header in shards:
        for name, entry in header.tensors.items():
            if weight_map is not None and weight_map.get(name) != shard:
                continue  # transformers loads what the index names, from where it names it
            if name in tensors:
                raise PackagingError(_INVALID, f"{directory}: tensor {name!r} is in two files")
            tensors[name] = entry
    absent = next((name for name in weight_map or () if name not in tensors), None)
    if absent is not None:
        raise PackagingError(
            _INVALID, f"{directory / INDEX} says that {(weight_map or {})[absent]} holds {absent!r}; it does not"
        )
    if not tensors:
        raise PackagingError(_INVALID, f"{directory} holds no tensors")
    return tensors


def _fingerprint(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        entry = tensors[name]
        digest.update(f"{name}\0{entry.dtype}\0{entry.shape}\n".encode())
    return digest.hexdigest()
