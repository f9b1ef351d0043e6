"""An adapter that does not fit its base is refused by name, as llama.cpp would refuse it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.verify.adapter import check_adapter

BASE = {"blk.0.attn_q.weight": (64, 32), "token_embd.weight": (64, 400)}


def adapter(path: Path, tensors: dict[str, tuple[int, ...]]) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_linear_rank_one_and_embedding_pairs_fit(tmp_path: Path) -> None:
    path = adapter(
        tmp_path / "a.gguf",
        {
            "blk.0.attn_q.weight.lora_a": (1, 64),
            "blk.0.attn_q.weight.lora_b": (32, 1),
            "token_embd.weight.lora_a": (400, 4),
            "token_embd.weight.lora_b": (64, 4),
        },
    )
    assert check_adapter(path, BASE) == 2


@pytest.mark.parametrize(
    ("tensors", "fact"),
    [
        ({"blk.9.attn_q.weight.lora_a": (4, 64), "blk.9.attn_q.weight.lora_b": (32, 4)}, "no tensor blk.9"),
        ({"blk.0.attn_q.weight.lora_a": (4, 96), "blk.0.attn_q.weight.lora_b": (32, 4)}, "do not fit"),
        ({"blk.0.attn_q.weight.lora_a": (4, 64), "blk.0.attn_q.weight.lora_b": (48, 4)}, "do not fit"),
        ({"blk.0.attn_q.weight.lora_a": (4, 64), "blk.0.attn_q.weight.lora_b": (32, 8)}, "do not fit"),
        ({"blk.0.attn_q.weight.lora_a": (4, 64)}, "not pairs"),
        ({"blk.0.attn_q.weight": (32, 64)}, "not pairs"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, tuple[int, ...]], fact: str) -> None:
    with pytest.raises(PackagingError, match=fact) as refused:
        check_adapter(adapter(tmp_path / "a.gguf", tensors), BASE)
    assert refused.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD
