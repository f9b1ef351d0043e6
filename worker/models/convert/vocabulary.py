"""Vocabulary against embedding: which of the two is larger, and whether that can be packaged.

llama.cpp loads a model only if the embedding has exactly as many rows as the file has tokens. More rows than tokens is
usual (padding to a multiple of 64, reserved rows): the file gets filler tokens. More tokens than rows means that tokens
exist which the model cannot embed: refused, naming both numbers. Headers and JSON only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.names import is_embedding, is_head, text_embedding
from worker.models.checkpoint import BaseModel
from worker.models.convert.tokenizer import TokenizerChoice, largest_token_id


def embedding_rows(base: BaseModel, config_changes: Mapping[str, object] | None = None) -> int | None:
    """Rows of the input embedding after merging; None where no tensor is known to be the embedding.

    Args:
        base: The base model.
        config_changes: ``Overlay.config_changes()``; its ``vocab_size`` wins.
    """
    for key, value in (config_changes or {}).items():
        if key.rpartition(".")[2] == "vocab_size" and isinstance(value, int):
            return value
    name = text_embedding(base)
    return None if name is None else base.tensors[name].shape[0]


def adapter_rows(adapter: Adapter) -> int | None:
    """Rows of the embedding (or head) that an adapter brings whole, by its headers; None where it brings none."""
    for key, entry in adapter.tensors.items():
        name = f"{key.module}{key.part}"
        if key.part == ".weight" and len(entry.shape) == 2 and (is_embedding(name) or is_head(name)):
            return entry.shape[0]
    return None


def check_vocabulary(choice: TokenizerChoice, rows: int | None, directory: Path) -> None:
    """Refuse a tokenizer that has tokens beyond the embedding's rows.

    Raises:
        PackagingError: ``vocabulary_mismatch``.
    """
    largest = largest_token_id(choice)
    if rows is None or largest is None or largest < rows:
        return
    raise PackagingError(
        ErrorCode.VOCABULARY_MISMATCH,
        f"the tokenizer in {choice.directory} has {largest + 1} tokens, the embedding in {directory} {rows} rows",
        fields={"tokens": largest + 1, "rows": rows},
    )
