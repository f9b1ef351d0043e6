"""Activated LoRA (aLoRA): never merged; its file says after which tokens it applies, and llama.cpp goes by that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from api_client.contract.errors import ErrorCode, PackagingError
from tests.tiny import tiny_base, tiny_checkpoint
from tests.unit.convert.convert_samples import read_gguf
from worker.models.adapters import build_overlay, normalise_for_export, open_adapter
from worker.models.adapters.export import invocation_tokens
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.verify.ask import Question
from worker.models.verify.load import generate

WORDS = "every stage"


def test_it_applies_after_its_tokens_and_only_there(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    tokens = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model")).Encode(WORDS)
    checkpoint = tiny_checkpoint(base, tmp_path / "run", alora_invocation_tokens=tokens, lora_alpha=64)
    adapter, model = open_adapter(checkpoint), open_base_model(base)
    assert invocation_tokens(adapter) == tuple(tokens)
    file = tmp_path / "lora.gguf"
    pairs = normalise_for_export(adapter, model)
    export_lora(
        pairs,
        model,
        file,
        gguf_dtype="f32",
        naming=Naming(model_name="A"),
        invocation_tokens=invocation_tokens(adapter),
    )
    assert read_gguf(file)[0]["adapter.alora.invocation_tokens"] == tokens
    convert(base, tmp_path / "base.gguf")

    def said(prompt: str, lora: Path | None) -> str:
        return generate(Question(str(tmp_path / "base.gguf"), prompt, lora=str(lora) if lora else None, max_tokens=6))

    assert said("A checkpoint holds", file) == said("A checkpoint holds", None)
    assert said(f"Think of {WORDS}", file) != said(f"Think of {WORDS}", None)


def test_it_is_not_merged_and_the_remedy_says_what_to_do(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    checkpoint = tiny_checkpoint(base, tmp_path / "run", alora_invocation_tokens=[5, 6])
    with pytest.raises(PackagingError, match="applies only after its invocation tokens") as refused:
        build_overlay(open_adapter(checkpoint), open_base_model(base), tmp_path / "o.safetensors", precision="base")
    assert refused.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert "lora_only" in str(refused.value.to_dict()["remedy"])


@pytest.mark.parametrize("tokens", [[1, -2], ["<|x|>"], {"a": 1}, [True]])
def test_tokens_that_are_none_are_refused(tokens: object, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    checkpoint = tiny_checkpoint(base, tmp_path / "run")
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    (checkpoint / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": tokens}))
    with pytest.raises(PackagingError, match="not a list of token ids") as refused:
        invocation_tokens(open_adapter(checkpoint))
    assert refused.value.code is ErrorCode.ADAPTER_INVALID
