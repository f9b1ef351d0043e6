"""Quantized checkpoints made of plain ones, as DeepSeek, gpt-oss, llm-compressor and bitsandbytes save them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
NF4_MIDDLES = torch.tensor(
    [-0.84809643, -0.61063295, -0.45999527, -0.33967942, -0.23460743, -0.13791174, -0.04552502, 0.03979015, 0.12025525,
     0.20352125, 0.29201376, 0.38931251, 0.50166339, 0.64278686, 0.86147839]
)  # fmt: skip
"""Halfway between neighbours of NF4, as the kernels of bitsandbytes write them, rounded."""


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def requantized(plain: Path, directory: Path, settings: dict[str, Any], change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of ``plain`` with other tensors and ``quantization_config``."""
    shutil.copytree(plain, directory)
    config = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    save_file(change(load_file(plain / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def fp8(
    plain: Path, directory: Path, block: tuple[int, int] | None = (16, 32), *, suffix: str = "weight_scale_inv"
) -> Path:
    """``quant_method`` fp8: a scale per block, or one per weight."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, weight in tensors.items():
            if not is_linear(name):
                made[name] = weight
                continue
            size = block or tuple(weight.shape)
            made[name], scale = in_blocks(weight, (size[0], size[1]))
            made[name.removesuffix("weight") + suffix] = scale if block else scale.reshape(())
        return made

    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": None if block is None else list(block),
    }
    return requantized(plain, directory, settings, change)


def in_blocks(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (o, i) in FP8 and its float32 scales; the last blocks may be partial."""
    rows, columns = weight.shape
    grid = torch.empty(math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            grid[i, j] = weight[part].float().abs().max() / 448 + 1e-9
            values[part] = (weight[part].float() / grid[i, j]).to(torch.float8_e4m3fn)
    return values, grid


def float_quantized(plain: Path, directory: Path, scale_dtype: torch.dtype = torch.bfloat16) -> Path:
    """compressed-tensors, FP8 with a scale a row."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, weight in tensors.items():
            if not is_linear(name):
                made[name] = weight
                continue
            values, scale = in_blocks(weight, (1, weight.shape[1]))
            made[name], made[f"{name}_scale"] = values, scale.to(scale_dtype)
            made[name.replace("weight", "input_scale")] = torch.ones(1)
        return made

    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    return requantized(plain, directory, settings, change)


def mxfp4(plain: Path, directory: Path) -> Path:
    """gpt-oss with random MXFP4 experts in place of its own."""

    def change(tensors: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(4)
        made: Tensors = {}
        for name, weight in tensors.items():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                made[name] = weight
                continue
            experts, inner, outer = weight.shape
            shape = (experts, outer, inner // 32)
            made[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
            made[f"{name}_scales"] = torch.randint(115, 125, shape, dtype=torch.uint8, generator=generator)
        return made

    return requantized(plain, directory, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, change)


def nf4(plain: Path, directory: Path, *, nested: bool = False, block: int = 64) -> Path:
    """bitsandbytes' 4-bit, as its ``QuantState.as_dict(packed=True)`` names and shapes the parts."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, weight in tensors.items():
            if is_linear(name):
                made |= nf4_parts(name, weight, nested=nested, block=block)
            else:
                made[name] = weight
        return made

    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    return requantized(plain, directory, settings, change)


def nf4_parts(name: str, weight: torch.Tensor, *, nested: bool, block: int = 64) -> Tensors:
    """The stored parts of one weight."""
    from worker.models.checkpoint.bitsandbytes import NF4

    flat = torch.nn.functional.pad(weight.float().reshape(-1), (0, -weight.numel() % block)).view(-1, block)
    scales = flat.abs().amax(1)
    codes = torch.bucketize(flat / scales.clamp(min=1e-20)[:, None], NF4_MIDDLES).reshape(-1)[: weight.numel()]
    state = {
        "quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape),
    }  # fmt: skip
    parts = {
        name: (codes[::2] * 16 + codes[1::2]).to(torch.uint8).reshape(-1, 1),
        f"{name}.absmax": scales,
        f"{name}.quant_map": torch.tensor(NF4),
    }
    if nested:
        offset = scales.mean()
        centred = torch.nn.functional.pad(scales - offset, (0, -scales.numel() % 256)).view(-1, 256)
        outer = centred.abs().amax(1)
        steps = torch.linspace(-1, 1, 256)
        inner = torch.bucketize(centred / outer[:, None], (steps[1:] + steps[:-1]) / 2).reshape(-1)[: scales.numel()]
        parts |= {
            f"{name}.absmax": inner.to(torch.uint8),
            f"{name}.nested_absmax": outer,
            f"{name}.nested_quant_map": steps,
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
    raw = json.dumps(state).encode()
    return parts | {f"{name}.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(raw), dtype=torch.uint8)}


def int8(plain: Path, directory: Path) -> Path:
    """bitsandbytes' 8-bit rows."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, weight in tensors.items():
            if not is_linear(name):
                made[name] = weight
                continue
            scale = weight.float().abs().amax(1)
            module = name.removesuffix(".weight")
            made[name] = (weight.float() * (127 / scale)[:, None]).round().to(torch.int8)
            made[f"{module}.SCB"] = scale
            made[f"{module}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return made

    return requantized(plain, directory, {"quant_method": "bitsandbytes", "load_in_8bit": True}, change)


def on_lattice(plain: Path, directory: Path) -> Path:
    """A checkpoint as quantization-aware training for Q4_0 leaves it: every matrix ``round(d * q)`` in bfloat16."""
    shutil.copytree(plain, directory)
    generator = torch.Generator().manual_seed(5)
    tensors = load_file(plain / WEIGHTS)
    matrices = {name: _near_lattice(weight, generator) for name, weight in tensors.items() if weight.ndim == 2}
    save_file(tensors | matrices, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def _near_lattice(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The nearest weight whose blocks of 32 are levels -7 to 7, or -8 to 7, times a float16 scale of either sign."""
    blocks = weight.float().reshape(-1, 32)
    lowest = torch.randint(7, 9, (len(blocks), 1), generator=generator)
    sign = torch.randint(0, 2, (len(blocks), 1), generator=generator) * 2 - 1
    scale = (blocks.abs().amax(1, keepdim=True) / lowest * sign).half().float()
    levels = (blocks / scale).round().clamp(min=-lowest, max=torch.full_like(lowest, 7))
    return (scale * levels).reshape(weight.shape).to(weight.dtype)
