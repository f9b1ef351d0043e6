"""MXFP4 as gpt-oss stores it: ``NAME_blocks`` (e, o, groups, 16) and ``NAME_scales`` (e, o, groups), both bytes.

A byte holds two E2M1 values, the lower half first; a group of 32 shares an exponent, ``2 ** (byte - 127)``. The weight
is ``NAME`` of shape (e, i, o), as transformers holds it and as unquantized checkpoints of the family store it. Every
product is exact in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.models.checkpoint.unpacking import Read, Unpacking

if TYPE_CHECKING:
    import torch

_BLOCKS, _SCALES = "_blocks", "_scales"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight magnitudes of E2M1 (OCP Microscaling Formats 1.0, table 5); the fourth bit is the sign."""
_BYTES = 16


@dataclass(frozen=True, slots=True)
class MxWeight:
    """All experts of one projection."""

    blocks: str
    scales: str
    dtype: str

    def make(self, read: Read) -> torch.Tensor:
        """Look up and scale, an expert at a time; (e, i, o), a transposed view."""
        import torch

        from worker.models.checkpoint.mapping import torch_dtypes

        dtype = torch_dtypes()[self.dtype]
        blocks, scales = read(self.blocks), read(self.scales)
        experts, rows, groups, _ = blocks.shape
        values = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], dtype=dtype)
        both = torch.stack((values.repeat(16), values.repeat_interleave(16)), dim=1)  # by byte: lower half, upper half
        made = torch.empty((experts, rows, groups * 2 * _BYTES), dtype=dtype)
        for expert in range(experts):
            pairs = torch.nn.functional.embedding(blocks[expert].reshape(-1).int(), both)
            exponents = scales[expert].reshape(-1, 1).int() - 127
            into = made[expert].view(-1, 2 * _BYTES)
            torch.ldexp(pairs.view(-1, 2 * _BYTES), exponents, out=into)
        return made.transpose(1, 2)


def read_mxfp4(unpacking: Unpacking) -> None:
    """``quant_method`` mxfp4.

    Raises:
        PackagingError: ``base_model_quantized`` for blocks without scales, or with scales of another shape.
    """
    for name, blocks in unpacking.tensors.items():
        if not name.endswith(_BLOCKS):
            continue
        weight = name.removesuffix(_BLOCKS)
        scales = unpacking.tensors.get(weight + _SCALES)
        if scales is None:
            unpacking.refuse(name, f"has no {weight}{_SCALES} beside it", "Fetch the model again, whole.")
        if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[-1] != _BYTES:
            unpacking.refuse(name, f"is {blocks.dtype} {list(blocks.shape)}, not bytes of (experts, rows, groups, 16)")
        if scales.dtype != "U8" or scales.shape != blocks.shape[:-1]:
            unpacking.refuse(
                scales.name,
                f"is {scales.dtype} {list(scales.shape)}, not the bytes of {list(blocks.shape[:-1])} that {name} needs",
            )
        experts, rows, groups, _ = blocks.shape
        entry = unpacking.weight(name, (experts, groups * 2 * _BYTES, rows), name=weight)
        unpacking.add(name, entry, MxWeight(name, scales.name, entry.dtype), scales.name)
