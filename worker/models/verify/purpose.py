"""What a GGUF file is for, by its own header: an encoder asked to write would only keep the proof waiting."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from worker.models.gguf.metadata import get_value
from worker.models.gguf.reader import GGUFFile, open_gguf

_ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "modern-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
     "t5encoder", "gemma-embedding", "llama-embed", "wavtokenizer-dec"}
)  # fmt: skip
"""GGUF architectures that give embeddings and no text."""
_ONLY_LOAD = frozenset({"t5", "wavtokenizer-dec"})
"""An encoder with a decoder, which llama.cpp's server does not run, and a decoder of sound, which reads no text."""
_RANKED = 4  # llama.h, enum llama_pooling_type
_HEAD = "cls.output.weight"


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    FIRST = "cls"
    LAST = "lasttoken"


_POOLINGS = {1: Pooling.MEAN, 2: Pooling.FIRST, 3: Pooling.LAST}


class Purpose(StrEnum):
    """How a file is proven."""

    WRITE = "write"
    EMBED = "embed"
    RANK = "rank"
    LOAD = "load"


def purpose_of(path: Path) -> Purpose:
    """What a file is for.

    Args:
        path: The file, or its first shard where it is split.

    Raises:
        PackagingError: ``gguf_invalid``.
    """
    with open_gguf(path) as file:
        return _purpose(file)


def pooling_is_set(path: Path) -> bool:
    """Whether the file itself says how the vectors of its tokens become one."""
    with open_gguf(path) as file:
        return _key(file, "pooling_type") in {*_POOLINGS, _RANKED}


def pooling_of(path: Path) -> Pooling | None:
    """How the file says that they do; None where it does not."""
    with open_gguf(path) as file:
        key = _key(file, "pooling_type")
    return _POOLINGS.get(key) if isinstance(key, int) else None


def _purpose(file: GGUFFile) -> Purpose:
    architecture = _architecture(file)
    if architecture in _ONLY_LOAD:
        return Purpose.LOAD
    pooling = _key(file, "pooling_type")
    if pooling == _RANKED or (architecture in _ENCODERS and any(tensor.name == _HEAD for tensor in file.tensors)):
        return Purpose.RANK
    # attention without a mask: encoders, and models that denoise a whole text, which llama.cpp's server does not do
    if architecture in _ENCODERS or pooling in _POOLINGS or _key(file, "attention.causal") is False:
        return Purpose.EMBED
    return Purpose.WRITE


def _architecture(file: GGUFFile) -> str:
    return str(get_value(file.metadata, "general.architecture"))


def _key(file: GGUFFile, name: str) -> object:
    value: object = get_value(file.metadata, f"{_architecture(file)}.{name}")
    return value
