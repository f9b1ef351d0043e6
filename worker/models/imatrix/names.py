"""From what torch multiplied to GGUF tensors: the statistics take the way the weights take.

The converter splits, joins, permutes, transposes and renames weights, each architecture in its own way. Instead of
knowing how, every weight of a layer is replaced by a tensor of the same shape that holds, along its input channels,
the numbers of those channels, the same in every row. This goes through transformers' conversion back to checkpoint
form and then through the converter's ``modify_tensors``. What comes out under a GGUF name says in each row which
channel of which weight became which column.

What the converter makes of a weight has no entry if its rows disagree (a transposed part, as in multi-head latent
attention: its input is not the input of the original product), if one of its channels was never seen by the tap, or
if the numbers were changed and not only moved.

Names are those of ``llama-imatrix``: only tensors in blocks, neither the output matrix nor the embedding.

Memory: the largest fused tensor of one layer, once more, as int32.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.models.imatrix.sums import TensorSums
from worker.models.imatrix.tap import Gathered

_BLOCK = re.compile(r"(.*?\.\d+\.)")
_FOREIGN = -1  # number of every channel that the tap has not seen


class Converter(Protocol):
    """The part of upstream's ``ModelBase`` that is used here."""

    def filter_tensors(self, item: tuple[str, Any]) -> tuple[str, Any] | None:
        """New name of a checkpoint tensor, or None if it is not converted."""

    def modify_tensors(
        self, data_torch: torch.Tensor, name: str, bid: int | None
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """GGUF tensors made of a checkpoint tensor; keeps those it must wait with."""


class ToCheckpoint(Protocol):
    """Turns tensors named and shaped like parameters into the checkpoint's form."""

    def __call__(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by checkpoint name."""


@dataclass(frozen=True)
class Mapped:
    """Statistics by GGUF name.

    Attributes:
        entries: GGUF tensor -> sums and counts.
        left_out: What was gathered but has no place in the file: checkpoint tensors that the converter does not take,
            and GGUF tensors whose columns are not input channels.
    """

    entries: dict[str, TensorSums]
    left_out: list[str]


@dataclass(frozen=True)
class _Numbering:
    """Channels of all weights of one block, numbered through.

    Attributes:
        sums: By channel number, float64.
        plain: By channel number, float64; NaN where they were not kept.
        owner: Channel number -> number of the matrix it belongs to.
        counts: By matrix number.
    """

    sums: torch.Tensor
    plain: torch.Tensor
    owner: torch.Tensor
    counts: torch.Tensor


def map_to_gguf(
    gathered: Mapping[str, Gathered],
    shapes: Mapping[str, torch.Size],
    to_checkpoint: ToCheckpoint,
    converter: Converter,
) -> Mapped:
    """Give what the tap gathered the names and the layout of the GGUF file.

    Args:
        gathered: Parameter name -> what it was multiplied with.
        shapes: Every entry of the model's state dict; parts of a block without statistics are needed to complete it.
        to_checkpoint: :meth:`worker.models.imatrix.model.Skeleton.to_checkpoint`.
        converter: An instance of upstream's converter for this model.
    """
    blocks: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        match = _BLOCK.match(name)
        blocks[match[1] if match else name].append(name)
    mapped = Mapped({}, [])
    for members in blocks.values():
        if any(name in gathered for name in members):
            _map_block({name: shapes[name] for name in members}, gathered, to_checkpoint, converter, mapped)
    return mapped


def _map_block(
    shapes: Mapping[str, torch.Size],
    gathered: Mapping[str, Gathered],
    to_checkpoint: ToCheckpoint,
    converter: Converter,
    mapped: Mapped,
) -> None:
    numbering, numbers = _number(shapes, gathered)
    for name, tensor in to_checkpoint(numbers).items():
        seen = bool((tensor[(0,) * tensor.dim()] != _FOREIGN).item()) if tensor.numel() else False
        try:
            converted = list(convert_tensor(converter, name, tensor))
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError, NotImplementedError):
            converted = []  # upstream raises whatever its code for this tensor runs into; the tensor gets no entry
            if seen:
                mapped.left_out.append(name)
        for gguf_name, moved in converted:
            if "blk." not in gguf_name or not gguf_name.endswith(".weight") or moved.dim() not in (2, 3):
                continue
            entry = _read_back(moved, numbering)
            if entry is not None:
                mapped.entries[gguf_name] = entry
            elif seen:
                mapped.left_out.append(gguf_name)


def _number(
    shapes: Mapping[str, torch.Size], gathered: Mapping[str, Gathered]
) -> tuple[_Numbering, dict[str, torch.Tensor]]:
    """Number the channels of a block, and make views of the parameters' shapes that hold the numbers."""
    sums, plain, counts, owner = [], [], [], []
    numbers: dict[str, torch.Tensor] = {}
    first, matrix = 0, 0
    for name, shape in shapes.items():
        entry = gathered.get(name)
        if entry is None:
            numbers[name] = torch.full((1,) * len(shape), _FOREIGN, dtype=torch.int32).expand(shape)
            continue
        matrices, channels = entry.sums.shape
        own = torch.arange(first, first + matrices * channels, dtype=torch.int32)
        lead = (matrices,) if len(shape) == 3 else ()
        numbers[name] = own.reshape(*lead, *((1, channels) if entry.axis == -1 else (channels, 1))).expand(shape)
        sums.append(entry.sums.cpu().flatten())
        kept = entry.plain if entry.plain is not None else torch.full_like(entry.sums, torch.nan)
        plain.append(kept.cpu().flatten())
        counts.append(entry.counts.cpu())
        owner.append(torch.arange(matrix, matrix + matrices).repeat_interleave(channels))
        first, matrix = first + matrices * channels, matrix + matrices
    return _Numbering(torch.cat(sums), torch.cat(plain), torch.cat(owner), torch.cat(counts)), numbers


def convert_tensor(converter: Converter, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """One checkpoint tensor through the converter, as its own loop does it."""
    item = converter.filter_tensors((name, lambda: tensor))
    if item is None:
        return
    name = item[0]
    block = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    yield from converter.modify_tensors(tensor, name, block)


def _read_back(moved: torch.Tensor, numbering: _Numbering) -> TensorSums | None:
    """Statistics of a converted tensor ``([m,] out, in)``; None if its columns are not channels of one weight."""
    matrices = moved if moved.dim() == 3 else moved.unsqueeze(0)
    if matrices.numel() == 0:
        return None
    rows = []
    for matrix in matrices:
        if not bool((matrix == matrix[0]).all()):
            return None
        numbers = matrix[0].long()
        low, high = int(numbers.min()), int(numbers.max())
        whole = bool((numbers == matrix[0]).all()) and high - low + 1 == len(numbers) == len(numbers.unique())
        if low < 0 or high >= len(numbering.owner) or not whole:
            return None
        owners = numbering.owner[numbers]
        if not bool((owners == owners[0]).all()):
            return None
        rows.append((numbering.sums[numbers], numbering.counts[owners[0]], numbering.plain[numbers]))
    plain = torch.stack([kept for *_, kept in rows])
    return TensorSums(
        in_sum2=torch.stack([sums for sums, *_ in rows]).float().numpy(),
        counts=torch.stack([count for _, count, _ in rows]).float().numpy(),
        in_sum=None if bool(plain.isnan().any()) else plain.float().numpy(),
    )
