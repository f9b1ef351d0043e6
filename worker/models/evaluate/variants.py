"""The models that are compared, as weights for one skeleton: the reference, the base without its adapter, and files.

A file's weights are decoded exactly from its blocks and put where the conversion took them from
(:mod:`worker.models.evaluate.inverse`); what a file holds in full precision anyhow (norms, small vectors) is the
reference's. A file with a matrix that has no place in the model is refused by name: figures of another model would be
worse than none.

Memory: of the layer at hand, the reference's weights and one other variant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.evaluate.arithmetic import Arithmetic, InputType, coarseness, input_type
from worker.models.evaluate.inverse import BlockMap
from worker.models.gguf.metadata import Metadata
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorInfo
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.model import LazyTensor, Skeleton
from worker.models.kernels import FLOAT_TYPES, dequantize_rows, widen_rows

_OF_TOKENS = ("token_embd.weight", "output.weight")
_SLAB_VALUES = 1 << 24
"""Values decoded at a time: 64 MiB as float32."""


@dataclass(frozen=True)
class Destination:
    """One of the places where weights are put: a layer, the embedding, the head, or what lies outside them.

    Attributes:
        own: The reference's parameters there, by name.
        block: Where a file's tensors lie among them.
        skeleton: The model.
    """

    own: Mapping[str, torch.Tensor]
    block: BlockMap
    skeleton: Skeleton


class Variant(Protocol):
    """One of the models that are compared."""

    @property
    def name(self) -> str:
        """Its name among the scores."""

    def weights(self, place: Destination) -> dict[str, torch.Tensor]:
        """Its parameters at a place, by name; those that are as in the reference may be left out."""

    def input_types(self, place: Destination) -> dict[str, InputType]:
        """Parameter -> what the inputs of its products are rounded to; those that are not rounded are left out."""


@dataclass(frozen=True)
class Reference:
    """The model as it was trained: what everything else is compared with."""

    name: str = "reference"

    def weights(self, _place: Destination) -> dict[str, torch.Tensor]:
        """Nothing differs."""
        return {}

    def input_types(self, _place: Destination) -> dict[str, InputType]:
        """Nothing is rounded."""
        return {}


@dataclass(frozen=True)
class BaseWeights:
    """The same architecture with other weights, from safetensors: the base model without its adapter.

    Attributes:
        name: Its name among the scores.
        tensors: Its tensors, under the reference's names.
    """

    name: str
    tensors: Mapping[str, LazyTensor]

    def weights(self, place: Destination) -> dict[str, torch.Tensor]:
        """All parameters, read through transformers' own loading."""
        loaded: dict[str, torch.Tensor] = {}
        for prefix in {name.rpartition(".")[0] + "." for name in place.own}:
            loaded |= dict(place.skeleton.load(prefix, tensors=self.tensors))
        return {name: tensor.detach() for name, tensor in loaded.items() if name in place.own}

    def input_types(self, _place: Destination) -> dict[str, InputType]:
        """Nothing is rounded."""
        return {}


class TensorFile(Protocol):
    """A GGUF file, or what reads like one."""

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""

    @property
    def header_sha256(self) -> str:
        """Digest of everything before the data section."""

    @property
    def metadata(self) -> Metadata:
        """Values by key, in file order."""

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """All tensors."""

    def tensor_bytes(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's data, uint8 ``(row_count, row_bytes)``."""

    def close(self) -> None:
        """Let it go."""


class QuantizedFile:
    """A GGUF file made of the model, whole or in shards."""

    def __init__(
        self,
        name: str,
        shards: Iterable[Path | TensorFile],
        quant_type: str | None = None,
        arithmetic: Arithmetic = Arithmetic.LLAMA_CPP,
        sha256: str = "",
    ) -> None:
        """Open the file.

        Args:
            name: Its name among the scores.
            shards: In order, by their paths or open; one where it is not split.
            quant_type: What it is called, for the report.
            arithmetic: How products with its weights are computed.
            sha256: Of its content, where it is known: tells it from another whose header is the same.

        Raises:
            PackagingError: ``gguf_invalid``.
        """
        self.name = name
        self.quant_type = quant_type
        self.arithmetic = arithmetic
        self._sha256 = sha256
        self._files: list[TensorFile] = [open_gguf(shard) if isinstance(shard, Path) else shard for shard in shards]
        self._tensors: dict[str, tuple[TensorFile, TensorInfo]] = {
            tensor.name: (file, tensor) for file in self._files for tensor in file.tensors
        }
        self._left = {
            tensor.name
            for _, tensor in self._tensors.values()
            if tensor.type is not GGMLType.F32 and tensor.row_count > 1
        }

    @property
    def fingerprint(self) -> str:
        """Tells this file from others: name, size and digest of each shard's header, and of the content if known."""
        headers = [(file.size_bytes, file.header_sha256) for file in self._files]
        return f"{self.name} {self.arithmetic} {headers} {self._sha256}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(file.size_bytes for file in self._files)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight."""
        tensors = [tensor for _, tensor in self._tensors.values()]
        return 8 * sum(t.size_bytes for t in tensors) / sum(t.element_count for t in tensors)

    @property
    def metadata(self) -> Metadata:
        """Metadata of the first shard."""
        return self._files[0].metadata

    def weights(self, place: Destination) -> dict[str, torch.Tensor]:
        """The place's matrices as the file holds them."""
        changed: dict[str, torch.Tensor] = {}
        for gguf_name in place.block.targets.keys() & self._tensors.keys():
            self._left.discard(gguf_name)
            same = place.block.same_as(gguf_name)
            if same is not None:  # without a copy of a head, which may be larger than all layers' matrices together
                own = place.own[same]
                changed[same] = self.decoded(gguf_name, place.block).reshape(own.shape).to(own)
                continue
            for name in place.block.parameters_of(gguf_name):
                if name not in changed:
                    changed[name] = place.own[name].detach().clone(memory_format=torch.contiguous_format)
            place.block.place(gguf_name, self.decoded(gguf_name, place.block), changed)
        return changed

    def tensor(self, gguf_name: str) -> TensorInfo:
        """What the file says of a tensor."""
        return self._tensors[gguf_name][1]

    def mark_placed(self, block: BlockMap) -> None:
        """Count the tensors of a block as put somewhere."""
        self._left -= block.targets.keys()

    def holds(self, gguf_name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return gguf_name in self._tensors

    def type_of(self, gguf_name: str) -> GGMLType:
        """The type in which a tensor is judged."""
        return self._tensors[gguf_name][1].type

    def input_types(self, place: Destination) -> dict[str, InputType]:
        """What llama.cpp rounds the inputs of each matrix to.

        Where a parameter is made of several tensors whose inputs are rounded differently, as only a mixture of K-quants
        and others makes it, it is the type with the larger blocks.
        """
        types: dict[str, InputType] = {}
        if self.arithmetic is Arithmetic.EXACT:
            return types
        for gguf_name in place.block.targets.keys() & self._tensors.keys():
            kind = input_type(self.type_of(gguf_name))
            if kind is None:
                continue
            for name in place.block.parameters_of(gguf_name):
                types[name] = max(types.get(name, kind), kind, key=coarseness)
        return types

    def check_complete(self) -> None:
        """All matrices of the file have been put somewhere.

        Raises:
            PackagingError: ``unsupported_architecture``, naming the first that was not.
        """
        if self._left:
            first = min(self._left)
            raise PackagingError(
                ErrorCode.UNSUPPORTED_ARCHITECTURE,
                f"{self.name}: {len(self._left)} tensors have no counterpart in transformers' model, first {first}",
                fields={"file": self.name, "tensors": sorted(self._left)[:20]},
            )

    def close(self) -> None:
        """Let the files go."""
        for file in self._files:
            file.close()

    def decoded(self, gguf_name: str, block: BlockMap) -> torch.Tensor:
        """Values of a tensor, float32 ``(rows, columns)``.

        Raises:
            PackagingError: ``vocabulary_mismatch`` where it has a row for each of another number of tokens,
                ``gguf_invalid`` where it has not the model's shape otherwise.
        """
        file, tensor = self._tensors[gguf_name]
        expected = block.targets[gguf_name].shape
        if gguf_name in _OF_TOKENS and tensor.row_length == expected[1] and tensor.row_count != expected[0]:
            raise PackagingError(
                ErrorCode.VOCABULARY_MISMATCH,
                f"{self.name} has {tensor.row_count} tokens, the model that it is compared with {expected[0]}",
                remedy="Compare a file with the model it was made from, or with one of the same tokenizer.",
                fields={"file": self.name, "tensor": gguf_name},
            )
        if (tensor.row_count, tensor.row_length) != expected:
            raise PackagingError(
                ErrorCode.GGUF_INVALID,
                f"{self.name}: tensor {gguf_name} is {tensor.row_length} x {tensor.row_count}, the model's is"
                f" {expected[1]} x {expected[0]}",
                fields={"file": self.name, "tensor": gguf_name},
            )
        raw = file.tensor_bytes(tensor)
        values = torch.empty(expected, dtype=torch.float32)
        step = max(1, _SLAB_VALUES // tensor.row_length)
        for row in range(0, tensor.row_count, step):
            out = values[row : row + step].numpy()
            if tensor.type in FLOAT_TYPES:
                out[:] = widen_rows(tensor.type, raw[row : row + step])
            else:
                dequantize_rows(tensor.type, raw[row : row + step], out)
        return values
