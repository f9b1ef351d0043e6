"""Calibration text to chunks of token ids, as llama-imatrix cuts them.

The text is tokenized as a whole; each chunk is ``chunk_tokens`` consecutive tokens, and the rest is dropped. Where
the model wants a begin-of-text token, it goes before the text and also replaces the first token of every chunk. Text
that looks like a special token is tokenized as text.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from api_client.contract.errors import ErrorCode, PackagingError


def tokenize_chunks(
    text: str, tokenizer_dir: Path, chunk_tokens: int, chunks: int | None, *, special_tokens: bool = False
) -> torch.Tensor:
    """Token ids of the calibration text.

    Args:
        text: The calibration text.
        tokenizer_dir: Directory with the tokenizer files the model is packaged with.
        chunk_tokens: Length of a chunk.
        chunks: How many chunks to use; all where None, and all where there are fewer.
        special_tokens: Whether what looks like a special token in the text is one.

    Returns:
        int64 ``(chunks, chunk_tokens)``.

    Raises:
        PackagingError: ``calibration_too_short``, ``tokenizer_unsupported``.
    """
    ids, begin = _token_ids(text, tokenizer_dir, special_tokens=special_tokens)
    available = len(ids) // chunk_tokens
    if available == 0:
        raise PackagingError(
            ErrorCode.CALIBRATION_TOO_SHORT,
            f"the calibration text has {len(ids)} tokens, one chunk needs {chunk_tokens}",
            fields={"tokens_found": len(ids), "tokens_needed": chunk_tokens},
        )
    count = available if chunks is None else min(chunks, available)
    cut = torch.tensor(ids[: count * chunk_tokens], dtype=torch.int64).reshape(count, chunk_tokens)
    if begin is not None:
        cut[:, 0] = begin
    return cut


def _token_ids(text: str, tokenizer_dir: Path, *, special_tokens: bool) -> tuple[list[int], int | None]:
    """Ids of the whole text, and the begin-of-text id where the tokenizer adds one by itself."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_dir, trust_remote_code=False, local_files_only=True
        )
        split = not special_tokens
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)["input_ids"]
        begin = tokenizer.bos_token_id
        adds_begin = begin is not None and tokenizer("a")["input_ids"][:1] == [begin]
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise PackagingError(
            ErrorCode.TOKENIZER_UNSUPPORTED,
            f"{tokenizer_dir}: transformers cannot load the tokenizer to read the calibration text: {error}",
            remedy="Give an imatrix file, or choose quant types that need none.",
        ) from error
    return ([begin, *ids], begin) if adds_begin else (ids, None)
