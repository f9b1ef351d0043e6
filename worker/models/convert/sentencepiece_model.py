"""The sentencepiece model that a ``tokenizer.json`` was made of, where the file itself is gone.

transformers 5 saves ``tokenizer.json`` alone, and upstream takes the scores of a sentencepiece family from
``tokenizer.model`` only: without it every score is -1000, and llama.cpp, which merges by score, cuts words elsewhere.
What ``tokenizer.json`` holds is enough to write the model again:

- BPE: sentencepiece numbers its ordinary pieces in the order in which it learned them, and the score of piece number
  ``n`` is ``-n``. The merges, which transformers sorted by score, must say the same order.
- Unigram: pieces and scores are there as they were.

Format: ``sentencepiece_model.proto`` of sentencepiece 0.2, written by hand: messages of tagged fields.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from worker.models.convert.tokenizer import json_vocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_EXTRA_ID = re.compile(r"<extra_id_\d+>")  # T5's, which transformers appends to the pieces of its file


class PieceType(IntEnum):
    """``ModelProto.SentencePiece.Type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
Piece = tuple[str, float, PieceType]


def sentencepiece_model(description: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """The model's usual file name and its bytes; None where ``tokenizer.json`` was not made of one.

    Args:
        description: What ``tokenizer.json`` holds.
    """
    model = description.get("model")
    if not isinstance(model, dict) or not _has_only_spaces_marked(description):
        return None
    if model.get("type") == "BPE" and model.get("byte_fallback") is True:
        pieces = _bpe_pieces(description, model)
        return None if pieces is None else ("tokenizer.model", _encode(pieces, _BPE, description))
    if model.get("type") == "Unigram":
        return ("spiece.model", _encode(_unigram_pieces(description, model), _UNIGRAM, description))
    return None


def _bpe_pieces(description: Mapping[str, Any], model: Mapping[str, Any]) -> list[Piece] | None:
    vocabulary = sorted(json_vocabulary(description).items(), key=lambda entry: entry[1])
    if [number for _, number in vocabulary] != list(range(len(vocabulary))):
        return None
    types = _types(description, str(model.get("unk_token") or "<unk>"))
    pieces, ordinary = [], 0
    for text, _ in vocabulary:
        kind = PieceType.BYTE if _BYTE.fullmatch(text) else types.get(text, PieceType.NORMAL)
        pieces.append((text, -float(ordinary) if kind is PieceType.NORMAL else 0.0, kind))
        ordinary += kind is PieceType.NORMAL
    return pieces if _in_order(model, dict(vocabulary)) else None


def _in_order(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    """Whether the merges make pieces in the order of their ids, as sentencepiece does and few others do."""
    merges = model.get("merges")
    made = []
    for merge in merges if isinstance(merges, list) else []:
        parts = merge if isinstance(merge, list) else str(merge).split(" ")
        made.append(vocabulary.get("".join(map(str, parts)), -1))
    return bool(made) and made[0] >= 0 and made == sorted(made)


def _unigram_pieces(description: Mapping[str, Any], model: Mapping[str, Any]) -> list[Piece]:
    entries = [entry for entry in model.get("vocab") or () if isinstance(entry, list) and len(entry) == 2]
    while entries and _EXTRA_ID.fullmatch(str(entries[-1][0])):
        entries.pop()
    unknown = model.get("unk_id")
    types = _types(description, str(entries[unknown][0]) if type(unknown) is int and unknown < len(entries) else "")
    byte_fallback = model.get("byte_fallback") is True
    pieces = []
    for text, score in entries:
        kind = PieceType.BYTE if byte_fallback and _BYTE.fullmatch(str(text)) else types.get(text, PieceType.NORMAL)
        pieces.append((str(text), float(score), kind))
    return pieces


def _types(description: Mapping[str, Any], unknown: str) -> dict[str, PieceType]:
    added = description.get("added_tokens")
    types = {
        token["content"]: PieceType.CONTROL if token.get("special") else PieceType.USER_DEFINED
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    return types | {unknown: PieceType.UNKNOWN}


def _steps(part: Any, inner: str) -> list[Mapping[str, Any]]:
    if not isinstance(part, dict):
        return []
    steps = part.get(inner)
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else [part]


def _has_only_spaces_marked(description: Mapping[str, Any]) -> bool:
    """Whether words are cut as sentencepiece cuts them: at no place but before a space."""
    splits = _steps(description.get("pre_tokenizer"), "pretokenizers")
    changes = _steps(description.get("normalizer"), "normalizers")
    known = all(step.get("type") in ("Precompiled", "Prepend", "Replace", "Nmt", "NFKC") for step in changes)
    return known and all(
        step.get("type") in ("Metaspace", "WhitespaceSplit") or step.get("pattern") == {"String": " "}
        for step in splits
    )


def _encode(pieces: list[Piece], model_type: int, description: Mapping[str, Any]) -> bytes:
    changes = _steps(description.get("normalizer"), "normalizers")
    splits = _steps(description.get("pre_tokenizer"), "pretokenizers")
    prefix = any(step.get("type") == "Prepend" for step in changes) or any(
        step.get("prepend_scheme", "always") != "never" for step in splits if step.get("type") == "Metaspace"
    )
    squeezed = any(step.get("type") == "Replace" and "Regex" in step.get("pattern", {}) for step in changes) or any(
        step.get("type") == "WhitespaceSplit" for step in splits
    )
    charsmap = next((step.get("precompiled_charsmap") for step in changes if step.get("type") == "Precompiled"), None)
    trainer = _number(3, model_type) + _number(35, any(kind is PieceType.BYTE for _, _, kind in pieces))
    normalizer = _bytes(2, _decoded(charsmap)) + _number(3, prefix) + _number(4, squeezed) + _number(5, True)
    encoded = (
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in pieces
    )
    return b"".join(encoded) + _bytes(2, trainer) + _bytes(3, normalizer)


def _decoded(charsmap: Any) -> bytes:
    try:
        return base64.b64decode(charsmap, validate=True) if isinstance(charsmap, str) else b""
    except binascii.Error:
        return b""


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
