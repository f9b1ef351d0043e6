"""How far the base that an adapter was trained on lies from the one it is merged into, beside what the adapter changes.

QLoRA trains on weights rounded to 4 bits, ``Q(W)``, and is merged into ``W``. What is merged is ``W + D``, what was
trained ``Q(W) + D``. The ratio ``|Q(W) - W| / |D|`` (Frobenius norms over the measured weights together) says how much
larger the difference of the bases is than the training. NF4 in blocks of 64 is off by about 9 % of a normally
distributed weight, and adapters change weights by half a percent to a few: 2 to 20 is what one meets, and does little
harm, since the error points everywhere and the training in few directions. Above :data:`WARNING_RATIO` the adapter has
changed so little that what it learned may have been the base's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.models.adapters.names import is_embedding, is_head
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint.base_model import BaseModel
from worker.models.checkpoint.bitsandbytes import round_trip

if TYPE_CHECKING:
    import torch

WARNING_RATIO = 20.0
"""Ratio above which a merge is warned of."""
_MOST_TENSORS = 24
_MOST_ELEMENTS = 1 << 26  # about two seconds on one core


@dataclass(frozen=True)
class BaseError:
    """What was measured.

    Attributes:
        ratio: ``|Q(W) - W| / |D|``.
        relative_error: ``|Q(W) - W| / |W|``.
        relative_change: ``|D| / |W|``.
        measured: Weights that were measured, spread evenly over the model.
        changed: Weights that the adapter changes.
    """

    ratio: float
    relative_error: float
    relative_change: float
    measured: int
    changed: int


def measure_base_error(overlay: Overlay, base: BaseModel, kind: str) -> BaseError | None:
    """Compare on the weights themselves; at most 24 of them and 67 million values. None where none is changed.

    Args:
        overlay: The merge.
        base: The model it merges into.
        kind: ``nf4`` or ``fp4``: how the weights were rounded in training, in blocks of 64.

    Memory: twice the largest weight in float32.
    """
    exact = replace(overlay, precision="f32")  # the adapter's change itself, not what is left of it after rounding
    changed = overlay.names()
    names = [name for name in base.tensors if name in changed and _is_rounded(base, name)]
    error = change = size = 0.0
    chosen = _spread(names, base)
    for name in chosen:
        weight = base.read_tensor(name)
        wide = weight.float()
        size += _squared(wide)
        error += _squared(round_trip(weight, kind).float() - wide)
        change += _squared(exact.apply(name, weight) - wide)
    if not change:
        return None
    return BaseError(
        ratio=(error / change) ** 0.5,
        relative_error=(error / size) ** 0.5,
        relative_change=(change / size) ** 0.5,
        measured=len(chosen),
        changed=len(names),
    )


def _is_rounded(base: BaseModel, name: str) -> bool:
    """Whether a weight is of the kind that 4-bit training rounds: a linear layer's, but not the head's."""
    return len(base.tensors[name].shape) == 2 and not (is_embedding(name) or is_head(name))


def _spread(names: Sequence[str], base: BaseModel) -> list[str]:
    if not names:
        return []
    mean = sum(base.tensors[name].shape[0] * base.tensors[name].shape[1] for name in names) / len(names)
    count = max(1, min(len(names), _MOST_TENSORS, int(_MOST_ELEMENTS / mean)))
    return [names[index * len(names) // count] for index in range(count)]


def _squared(tensor: torch.Tensor) -> float:
    import torch

    return float(tensor.square().sum(dtype=torch.float64))
