"""Prove that an adapter GGUF fits its base model, by the checks that llama.cpp makes when it loads one.

Loading it for real would need the base model as a GGUF of its own, which an adapter-only job never makes; the planned
conversion of the base knows every tensor's name and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorSpec

_A, _B = ".lora_a", ".lora_b"
_TOKEN_EMBEDDING = "token_embd.weight"


def check_adapter(path: Path, base_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Check names and shapes.

    Args:
        path: The adapter.
        base_shapes: Shape of every tensor of the base GGUF, in ggml order (row length first).

    Returns:
        How many tensors of the base it adapts.

    Raises:
        PackagingError: ``output_does_not_load``, naming the tensor.
    """
    with open_gguf(path) as file:
        tensors = {tensor.name: tensor for tensor in file.tensors}
    names = {name.removesuffix(_A) for name in tensors if name.endswith(_A)}
    names |= {name.removesuffix(_B) for name in tensors if name.endswith(_B)}
    if not names or len(tensors) != 2 * len(names):
        raise _refused(path, f"{len(tensors)} tensors are not pairs of {_A} and {_B}")
    for name in sorted(names):
        a, b = tensors.get(name + _A), tensors.get(name + _B)
        if a is None or b is None:
            raise _refused(path, f"{name} has only one of {_A} and {_B}")
        if name not in base_shapes:
            raise _refused(path, f"the base model has no tensor {name}")
        _check_pair(path, name, base_shapes[name], a, b)
    return len(names)


def _check_pair(path: Path, name: str, base: tuple[int, ...], a: TensorSpec, b: TensorSpec) -> None:
    """Linear: W (o, i), B (o, r), A (r, i). Embedding: W (tokens, i), B (i, r), A (tokens, r)."""
    w0, w1 = _plane(base)
    (a0, a1), (b0, b1) = _plane(a.shape), _plane(b.shape)
    embedding = name == _TOKEN_EMBEDDING
    fits = (w0, w1) == (b1, a1) if embedding else (w0, w1, a1) == (a0, b1, b0)
    if not fits:
        raise _refused(path, f"{name} is {base}, its {_A} {a.shape} and {_B} {b.shape} do not fit")


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """The first two extents in ggml order; trailing ones are not written."""
    return shape[0], shape[1] if len(shape) > 1 else 1


def _refused(path: Path, reason: str) -> PackagingError:
    return PackagingError(
        ErrorCode.OUTPUT_DOES_NOT_LOAD,
        f"{path.name} does not fit its base model: {reason}",
        fields={"file": path.name, "reason": reason},
    )
