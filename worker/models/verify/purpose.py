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
_POOLED = frozenset({1, 2, 3})  # llama.h, enum llama_pooling_type: mean, first token, last token
_RANKED = 4
_HEAD = "cls.output.weight"


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
        return _key(file, "pooling_type") in _POOLED | {_RANKED}


def _purpose(file: GGUFFile) -> Purpose:
    architecture = _architecture(file)
    if architecture in _ONLY_LOAD:
        return Purpose.LOAD
    pooling = _key(file, "pooling_type")
    if pooling == _RANKED or (architecture in _ENCODERS and any(tensor.name == _HEAD for tensor in file.tensors)):
        return Purpose.RANK
    # attention without a mask: encoders, and models that denoise a whole text, which llama.cpp's server does not do
    if architecture in _ENCODERS or pooling in _POOLED or _key(file, "attention.causal") is False:
        return Purpose.EMBED
    return Purpose.WRITE


def _architecture(file: GGUFFile) -> str:
    return str(get_value(file.metadata, "general.architecture"))


def _key(file: GGUFFile, name: str) -> object:
    value: object = get_value(file.metadata, f"{_architecture(file)}.{name}")
    return value
