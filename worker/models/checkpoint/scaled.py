"""Weights of eight bits beside their scales: FP8 of DeepSeek and Mistral, compressed-tensors, 8-bit bitsandbytes.

A weight is ``value * scale``. A scale is one number for the whole weight, one per row, or one per block of a grid; the
last blocks of a grid may reach over the edge. As transformers 5 does it (``Fp8Dequantize``), FP8 is widened to float32,
multiplied and rounded once to the model's dtype; scales that are bytes are exponents (``2 ** (byte - 127)``).
compressed-tensors multiplies in the scale's own dtype and rounds that product to the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.models.checkpoint.headers import EXPONENTS, FP8_DTYPES
from worker.models.checkpoint.unpacking import CHUNK_ELEMENTS, Read, Unpacking

if TYPE_CHECKING:
    import torch

_SCALE_DTYPES = frozenset({"F32", "BF16", "F16", EXPONENTS, "U8"})
_INT8_STEP = 7.874015718698502e-3  # 1 / 127 as bitsandbytes writes it
# ends of the names of FP8 scales -> what takes their place in the weight's name
_FP8_SCALES = {"_scale_inv": "", ".qscale_weight": ".weight", ".weight_scale": ".weight"}
# last parts of names of scales that matter only while a model runs in eight bits
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "output_scale", "qscale_act", "k_scale", "v_scale", "q_scale")
_READ_FORMATS = ("float-quantized", "naive-quantized", "int-quantized")


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """What one format says of its weights.

    Attributes:
        dtypes: Stored dtypes.
        block: ``[rows, columns]`` to a scale as the config writes it; anything else where it says nothing.
        in_scale_dtype: Multiply in the scale's dtype, not in float32.
        step: A factor that all scales share.
    """

    dtypes: frozenset[str]
    block: Any = None
    in_scale_dtype: bool = False
    step: float | None = None


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """One weight of shape (o, i), or (e, o, i) for fused experts.

    Attributes:
        weight: Stored values, of the weight's shape.
        scale: Stored scales.
        grid: Shape of the scales as one grid a matrix: (rows, columns), with the experts before where there are some.
        block: Rows and columns of weights that one scale serves.
        dtype: Of the result.
        rule: Of its format.
    """

    weight: str
    scale: str
    grid: tuple[int, ...]
    block: tuple[int, int]
    dtype: str
    rule: ScaleRule

    def make(self, read: Read) -> torch.Tensor:
        """Multiply, some rows at a time: element by element, so that the pieces are the whole."""
        import torch

        from worker.models.checkpoint.mapping import torch_dtypes

        values, scales = read(self.weight), _widened(read(self.scale), keep=self.rule.in_scale_dtype).reshape(self.grid)
        made = torch.empty(values.shape, dtype=torch_dtypes()[self.dtype])
        if values.ndim == 2:
            self._multiply(values, scales, made)
        else:
            for expert in range(len(values)):
                self._multiply(values[expert], scales[expert], made[expert])
        return made

    def _multiply(self, values: torch.Tensor, scales: torch.Tensor, made: torch.Tensor) -> None:
        import torch

        rows, columns = values.shape
        high, wide = self.block
        step = max(1, CHUNK_ELEMENTS // max(columns, 1))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            grid = scales[start // high : math.ceil(stop / high)]
            if grid.shape[0] > 1 and high > 1:
                grid = grid[torch.arange(start, stop) // high - start // high]
            if grid.shape[1] > 1 and wide > 1:
                grid = grid.repeat_interleave(wide, 1)[:, :columns]
            product = values[start:stop].to(scales.dtype) * grid
            made[start:stop] = product if self.rule.step is None else product * self.rule.step


def _widened(scales: torch.Tensor, *, keep: bool) -> torch.Tensor:
    import torch

    if scales.dtype == torch.uint8:
        return (scales.to(torch.float32) - 127.0).exp2()
    return scales if keep and scales.dtype.itemsize > 1 else scales.to(torch.float32)


def read_fp8(unpacking: Unpacking) -> None:
    """``quant_method`` fp8: scales named ``*_scale_inv``, ``*.qscale_weight`` or ``*.weight_scale``.

    Raises:
        PackagingError: ``base_model_quantized`` for scales that do not fit.
    """
    rule = ScaleRule(FP8_DTYPES, unpacking.settings.get("weight_block_size"))
    for name in unpacking.tensors:
        end = next((end for end in _FP8_SCALES if name.endswith(end)), None)
        if end is not None:
            weight = name.removesuffix(end) + _FP8_SCALES[end]
            _add_scaled(unpacking, weight, name, rule)
        elif _is_of_activations(name):
            unpacking.used.add(name)


def read_compressed_tensors(unpacking: Unpacking) -> None:
    """``quant_method`` compressed-tensors, the formats that keep one value a byte: float, naive and int.

    Raises:
        PackagingError: ``base_model_quantized`` for other formats, and for scales that do not fit.
    """
    kinds = {_group_format(unpacking.settings, group) for group in _groups(unpacking.settings)}
    sparse = unpacking.settings.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format") not in (None, "dense"):
        kinds.add(f"sparse {sparse.get('format')}")
    unread = sorted(kinds.difference(_READ_FORMATS)) or ([] if kinds else ["no config_groups"])
    if unread:
        unpacking.refuse("config.json", f"says that the weights are compressed-tensors ({', '.join(unread)})")
    blocks = [group["weights"].get("block_structure") for group in _groups(unpacking.settings)]
    rule = ScaleRule(FP8_DTYPES | {"I8"}, blocks[0] if len(blocks) == 1 else None, in_scale_dtype=True)
    for name in unpacking.tensors:
        if name.endswith((".weight_zero_point", ".weight_g_idx")):
            unpacking.refuse(name, "belongs to weights that are quantized asymmetrically or in another order")
        if name.endswith(".weight_scale"):
            _add_scaled(unpacking, name.removesuffix("_scale"), name, rule)
        elif _is_of_activations(name):
            unpacking.used.add(name)


def add_int8(unpacking: Unpacking, weight: str, scale: str) -> None:
    """A weight of 8-bit bitsandbytes: ``value * scale / 127``, in float32, a scale a row.

    Raises:
        PackagingError: ``base_model_quantized``.
    """
    _add_scaled(unpacking, weight, scale, ScaleRule(frozenset({"I8"}), step=_INT8_STEP))


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict):
        return []
    return [group for group in groups.values() if isinstance(group, dict) and isinstance(group.get("weights"), dict)]


def _group_format(settings: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """The format of one group of weights; of another width than eight bits, that too."""
    kind, bits = group.get("format") or settings.get("format"), group["weights"].get("num_bits")
    return str(kind) if bits == 8 else f"{kind}, {bits} bits"


def _is_of_activations(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in _OF_ACTIVATIONS or last.endswith("_activation_scale")


def _add_scaled(unpacking: Unpacking, weight: str, scale: str, rule: ScaleRule) -> None:
    values, scales = unpacking.tensors.get(weight), unpacking.tensors[scale]
    if values is None:
        unpacking.refuse(scale, f"is the scale of {weight}, which is not there", "Fetch the model again, whole.")
    if values.dtype not in rule.dtypes:
        unpacking.refuse(weight, f"is stored as {values.dtype}, with its scale {scale} beside it")
    if scales.dtype not in _SCALE_DTYPES:
        unpacking.refuse(scale, f"is a scale stored as {scales.dtype}")
    fit = _fitting(values.shape, scales.shape, rule.block)
    if fit is None:
        wanted = f" in blocks of {list(rule.block)}" if _is_block(rule.block) else ""
        unpacking.refuse(
            scale,
            f"is {list(scales.shape)}, which is no shape of scales for a weight of {list(values.shape)}{wanted}",
            "Put the weight_block_size that the weights were saved with into config.json, or use the 16-bit model.",
        )
    entry = unpacking.weight(weight, values.shape)
    unpacking.add(weight, entry, ScaledWeight(weight, scale, *fit, entry.dtype, rule), scale)


def _is_block(block: Any) -> bool:
    return isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)


def _fitting(
    weight: tuple[int, ...], scale: tuple[int, ...], block: Any
) -> tuple[tuple[int, ...], tuple[int, int]] | None:
    """The scales' shape as grids, and the block that each serves; None where they do not fit the weight."""
    if len(weight) not in (2, 3):
        return None
    *experts, rows, columns = weight
    if math.prod(scale) == math.prod(experts) and scale[: len(experts)] == tuple(experts):
        return (*experts, 1, 1), (rows, columns)
    if scale in ((*experts, rows), (*experts, rows, 1)):
        return (*experts, rows, 1), (1, columns)
    if len(scale) != len(weight) or scale[:-2] != tuple(experts) or not all(scale):
        return None
    return _grid(rows, columns, scale, block)


def _grid(
    rows: int, columns: int, scale: tuple[int, ...], block: Any
) -> tuple[tuple[int, ...], tuple[int, int]] | None:
    """A grid of blocks of the size that the config says, or of the one that divides the weight evenly."""
    if _is_block(block):
        fits = scale[-2:] == (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
        return (scale, (block[0], block[1])) if fits else None
    even = rows % scale[-2] == 0 and columns % scale[-1] == 0
    return (scale, (rows // scale[-2], columns // scale[-1])) if even else None
