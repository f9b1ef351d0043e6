"""Tensors that share a type for the runtime's sake.

llama.cpp b11434 runs gate and up of a feed-forward layer as one kernel where their types are the same
(``ggml_cuda_should_fuse_mul_mat``), and experts that a file holds one by one are stacked when it is loaded. Fused
projections and stacked experts are one tensor already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_EXPERT = re.compile(r"(?P<stem>.*\.ffn_(?:gate|up|down))\.\d+(?P<rest>\..*)")
_PAIRED = re.compile(r"\.ffn_(?:gate|up)(?=[._])(?!_inp)")


def share_key(name: str) -> str:
    """What tensors that stay together have in common; the name itself of one that stands alone."""
    expert = _EXPERT.fullmatch(name)
    whole = f"{expert['stem']}{expert['rest']}" if expert else name
    return _PAIRED.sub(".ffn_gate+up", whole)


def together(names: Iterable[str]) -> list[tuple[int, ...]]:
    """Places of names by what they share, in the order of the first of each."""
    by_key: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        by_key.setdefault(share_key(name), []).append(place)
    return [tuple(places) for places in by_key.values()]
