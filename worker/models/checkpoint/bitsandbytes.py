"""Weights of bitsandbytes: 4-bit NF4 and FP4 with plain or nested scales, and 8-bit rows.

4-bit, beside ``W`` (two values a byte, the upper half first): ``W.absmax`` a scale per block of ``blocksize`` weights,
float32, or bytes where they are quantized again (``nested``): then ``W.nested_quant_map`` gives 256 values,
``W.nested_absmax`` a scale per ``nested_blocksize`` of them, and ``nested_offset`` is added. ``W.quant_map`` holds the
16 values, ``W.quant_state.bitsandbytes__nf4`` (or ``__fp4``) JSON with type, block sizes, shape and dtype.
A weight is ``value * scale`` in float32, rounded once to the dtype of the quant state, as the kernels compute it.
(Without kernels, bitsandbytes rounds the 16 values first.)
8-bit: ``W.weight`` and ``W.SCB``, see ``scaled``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.models.checkpoint.scaled import add_int8
from worker.models.checkpoint.unpacking import CHUNK_ELEMENTS, Read, Unpacking, WeightRecipe, named_dtype

if TYPE_CHECKING:
    import torch

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values of NF4 (Dettmers et al., QLoRA, appendix E): quantiles of the normal distribution, scaled to 1."""

_FP4_MAGNITUDES = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
FP4 = (*_FP4_MAGNITUDES, *(-value for value in _FP4_MAGNITUDES))
"""The 16 values of bitsandbytes' FP4, in the order of their codes."""

_CODES = {"nf4": NF4, "fp4": FP4}
_STATE = ".quant_state.bitsandbytes__"
_SCALES_4, _SCALES_8 = ".absmax", ".SCB"
BITSANDBYTES_ENDS = (_SCALES_8, _SCALES_4, *(f"{_STATE}{kind}" for kind in _CODES))
"""Ends of names by which a checkpoint is known as bitsandbytes'."""
_MAX_STATE_BYTES = 4096
NESTED_BLOCK = 256
_BLOCKS = tuple(1 << power for power in range(5, 13))
"""Sizes of blocks that bitsandbytes has kernels for, of weights and of scales: 32 to 4096."""
_ROW_MAJOR = 0  # weight_format of 8-bit weights that lie row by row


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """One 4-bit weight.

    Attributes:
        weight: Its stored bytes; other tensors are named after it.
        kind: ``nf4`` or ``fp4``.
        shape: Of the weight.
        dtype: Of the result.
        block: Weights that share a scale.
        nested_block: Scales that share a scale; 0 where scales are plain.
        nested_offset: Added to nested scales.
    """

    weight: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    block: int
    nested_block: int
    nested_offset: float

    def make(self, read: Read) -> torch.Tensor:
        """Look up and scale, some blocks at a time."""
        import torch

        from worker.models.checkpoint.mapping import torch_dtypes

        packed = read(self.weight).contiguous().reshape(-1).view(torch.uint8)
        values = torch.tensor(_CODES[self.kind], dtype=torch.float32)
        both = torch.stack((values.repeat_interleave(16), values.repeat(16)), dim=1)  # by byte: upper half, lower half
        scales = self._scales(read)
        count = math.prod(self.shape)
        made = torch.empty(count, dtype=torch_dtypes()[self.dtype])
        step = max(1, CHUNK_ELEMENTS // self.block) * self.block
        for start in range(0, count, step):
            stop = min(start + step, count)
            pairs = torch.nn.functional.embedding(packed[start // 2 : math.ceil(stop / 2)].int(), both)
            spread = scales[start // self.block : math.ceil(stop / self.block)].repeat_interleave(self.block)
            made[start:stop] = pairs.reshape(-1)[: stop - start] * spread[: stop - start]
        return made.reshape(self.shape)

    def _scales(self, read: Read) -> torch.Tensor:
        scales = read(f"{self.weight}.absmax").reshape(-1)
        if not self.nested_block:
            return scales.float()
        values = read(f"{self.weight}.nested_quant_map").float().reshape(-1)
        outer = read(f"{self.weight}.nested_absmax").float().reshape(-1)
        spread = outer.repeat_interleave(self.nested_block)[: scales.numel()]
        return values[scales.long()] * spread + self.nested_offset


def round_trip(weight: torch.Tensor, kind: str, block: int = 64, *, nested: bool = False) -> torch.Tensor:
    """A weight as training in 4 bits saw it: quantized as the kernels of bitsandbytes do it, and back, in its dtype.

    Each block is multiplied by the inverse of its largest magnitude, and every value goes to the nearest of the 16;
    halfway, to the lower one, as the thresholds of the kernels have it.

    Args:
        weight: Any shape; its values are taken in order.
        kind: ``nf4`` or ``fp4``.
        block: Weights to a scale.
        nested: Round the scales to 8 bits, too (double quantization).
    """
    import torch

    values = torch.tensor(sorted(set(_CODES[kind])), dtype=torch.float32)
    middles = (values[1:] + values[:-1]) / 2
    flat = weight.reshape(-1)
    made = torch.empty_like(flat)
    count = math.ceil(flat.numel() / block)
    step = max(1, CHUNK_ELEMENTS // block)

    def blocks_from(first: int) -> torch.Tensor:
        part = flat[first * block : (first + step) * block].float()
        return torch.nn.functional.pad(part, (0, -part.numel() % block)).view(-1, block)

    firsts = range(0, count, step)
    scales = torch.cat([blocks_from(first).abs().amax(1) for first in firsts]) if count else flat.float()
    seen = _nested_round_trip(scales) if nested else scales
    for first in firsts:
        part = slice(first, first + step)
        inverse = 1 / scales[part].clamp(min=torch.finfo(torch.float32).tiny)
        codes = torch.bucketize(blocks_from(first) * inverse[:, None], middles)
        into = made[first * block : (first + step) * block]
        into.copy_((values[codes] * seen[part, None]).reshape(-1)[: into.numel()])
    return made.reshape(weight.shape)


def _nested_round_trip(scales: torch.Tensor) -> torch.Tensor:
    """Scales less their mean, in blocks of 256 to the nearest of the values of the 8-bit dynamic map, and back."""
    import torch

    values = dynamic_map()
    middles = (values[1:] + values[:-1]) / 2
    offset = scales.mean()
    blocks = torch.nn.functional.pad(scales - offset, (0, -scales.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    outer = blocks.abs().amax(1, keepdim=True)
    codes = torch.bucketize(blocks / outer.clamp(min=torch.finfo(torch.float32).tiny), middles)
    return (values[codes] * outer).reshape(-1)[: scales.numel()] + offset


def dynamic_map() -> torch.Tensor:
    """The 256 values of bitsandbytes' signed 8-bit dynamic map (Dettmers et al., 8-bit Optimizers, section 1.3).

    Per power of ten from 1e-6 to 1, twice as many linear steps as for the one before; 0 and 1.
    """
    import torch

    positive = []
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1)
        positive += (10.0 ** (exponent - 6) * (borders[:-1] + borders[1:]) / 2).tolist()
    return torch.tensor(sorted([*positive, *(-value for value in positive), 0.0, 1.0]), dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A plain weight as training in 4 bits saw it.

    Attributes:
        name: The weight.
        inner: How it is made itself, where it is not stored as such.
        kind: ``nf4`` or ``fp4``.
        nested: As of :func:`round_trip`.
    """

    name: str
    inner: WeightRecipe | None
    kind: str
    nested: bool

    def make(self, read: Read) -> torch.Tensor:
        """Quantize and read back."""
        return round_trip(self.inner.make(read) if self.inner else read(self.name), self.kind, nested=self.nested)


def read_bitsandbytes(unpacking: Unpacking) -> None:
    """``quant_method`` bitsandbytes, or a checkpoint whose tensors are named so.

    Raises:
        PackagingError: ``base_model_quantized`` for parts that are missing or do not fit together.
    """
    for name in unpacking.tensors:
        if name.endswith(_SCALES_4):
            _add_four_bit(unpacking, name.removesuffix(_SCALES_4))
        elif name.endswith(_SCALES_8):
            module = name.removesuffix(_SCALES_8)
            layout = f"{module}.weight_format"
            if layout in unpacking.tensors:
                if any(int(value) != _ROW_MAJOR for value in unpacking.read(layout).reshape(-1)):
                    unpacking.refuse(layout, "says that the weight does not lie row by row")
                unpacking.used.add(layout)
            add_int8(unpacking, f"{module}.weight", name)


def _add_four_bit(unpacking: Unpacking, weight: str) -> None:
    tensors = unpacking.tensors
    state_name = next((f"{weight}{_STATE}{kind}" for kind in _CODES if f"{weight}{_STATE}{kind}" in tensors), None)
    if weight not in tensors or state_name is None:
        missing = weight if weight not in tensors else f"{weight}{_STATE}nf4"
        unpacking.refuse(f"{weight}.absmax", f"has no {missing} beside it", "Fetch the model again, whole.")
    recipe = _recipe(unpacking, weight, state_name)
    shape, block, nested_block = recipe.shape, recipe.block, recipe.nested_block
    scales = math.ceil(math.prod(shape) / block)
    parts = {"absmax": ("U8" if nested_block else "F32", scales), "quant_map": ("F32", 16)}
    if nested_block:
        parts |= {"nested_absmax": ("F32", math.ceil(scales / nested_block)), "nested_quant_map": ("F32", 256)}
    for part, (part_dtype, count) in parts.items():
        _check_part(unpacking, f"{weight}.{part}", part_dtype, count)
    stored_bytes = tensors[weight].size_bytes
    if stored_bytes != math.ceil(math.prod(shape) / 2):
        unpacking.refuse(
            weight, f"holds {stored_bytes} bytes, which are not the 4-bit values of a weight of {list(shape)}"
        )
    _check_values(unpacking, f"{weight}.quant_map", recipe.kind)
    entry = unpacking.weight(weight, shape, dtype=recipe.dtype)
    unpacking.add(weight, entry, recipe, state_name, *(f"{weight}.{part}" for part in parts))


def _recipe(unpacking: Unpacking, weight: str, state_name: str) -> FourBitWeight:
    """What the quant state of a weight says of it."""
    state = _state(unpacking, state_name)
    kind, dtype = state.get("quant_type"), named_dtype(state.get("dtype"))
    shape, block = _counts(state.get("shape")), _counts([state.get("blocksize")])
    if not (isinstance(kind, str) and kind in _CODES and shape and block and dtype):
        unpacking.refuse(state_name, "names no type, shape, block size and dtype of 4-bit weights")
    nested_block, offset = _counts([state.get("nested_blocksize", 0)]), state.get("nested_offset", 0.0)
    if not nested_block or not isinstance(offset, int | float):
        unpacking.refuse(state_name, "names no block size and offset of nested scales")
    for key, size in (("blocksize", block[0]), ("nested_blocksize", nested_block[0] or NESTED_BLOCK)):
        if size not in _BLOCKS:
            sizes = ", ".join(map(str, _BLOCKS))
            unpacking.refuse(state_name, f"says {key} {size}, and bitsandbytes has blocks of {sizes}")
    return FourBitWeight(weight, kind, shape, dtype, block[0], nested_block[0], float(offset))


def _state(unpacking: Unpacking, name: str) -> dict[str, Any]:
    """The JSON of one weight's quant state, empty where it is none."""
    import torch

    if unpacking.tensors[name].size_bytes > _MAX_STATE_BYTES:
        unpacking.refuse(name, "is too long for a quant state")
    raw = bytes(unpacking.read(name).contiguous().reshape(-1).view(torch.uint8).tolist())
    try:
        state = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _counts(values: Any) -> tuple[int, ...]:
    """A list of counts; empty where it is none."""
    if isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 32 for value in values):
        return tuple(values)
    return ()


def _check_part(unpacking: Unpacking, name: str, dtype: str, count: int) -> None:
    entry = unpacking.tensors.get(name)
    if entry is None:
        unpacking.refuse(name, "is missing", "Fetch the model again, whole.")
    if entry.dtype != dtype or math.prod(entry.shape) != count:
        unpacking.refuse(
            name, f"holds {math.prod(entry.shape)} values as {entry.dtype} where {count} as {dtype} belong"
        )


def _check_values(unpacking: Unpacking, name: str, kind: str) -> None:
    """The kernels know the 16 values by themselves; a file that lists others was made by something else."""
    import torch

    if not torch.allclose(unpacking.read(name).reshape(-1), torch.tensor(_CODES[kind]), atol=1e-4):
        unpacking.refuse(name, f"lists other values than those of {kind}")
